package server

import (
	"regexp"
	"sort"
	"strconv"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// label is what a name may be, as it becomes part of DNS names: as RFC 1123, and underscores because Compose files have them.
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)

func validName(what, name string) error {
	if label.MatchString(name) {
		return nil
	}
	return fault.New(fault.Invalid, "the %s name %q is not valid", what, name).
		WithHint("use up to 63 lower-case letters, digits, '-' and '_', with a letter or digit at both ends")
}

// fileName is what secrets, configs and volumes may be called within an environment: "name" or "app/name".
var fileName = regexp.MustCompile(`^([a-z0-9][a-z0-9_-]{0,62}/)?[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func validKey(what, name string) error {
	if fileName.MatchString(name) {
		return nil
	}
	return fault.New(fault.Invalid, "the %s name %q is not valid", what, name).
		WithHint("use letters, digits, '.', '-' and '_', with an app's name and a slash before it if it belongs to one")
}

func errNoNode(id string) error {
	return fault.New(fault.Unavailable, "node %q is not reachable", id).WithHint("gantry system info")
}

// resolve finds the one instance a target means.
func (s *Server) resolve(t *gantryv1.InstanceTarget) (*gantryv1.Instance, error) {
	found, err := s.resolveAll(t)
	if err != nil {
		return nil, err
	}
	if len(found) > 1 {
		// Prefer what runs: a service name means any of its instances.
		snap := s.store.Snapshot()
		for _, i := range found {
			if progress.View(snap, i).Status.Phase == gantryv1.InstanceStatus_PHASE_RUNNING {
				return i, nil
			}
		}
	}
	return found[0], nil
}

// resolveAll finds every instance a target means, in order of slot.
func (s *Server) resolveAll(t *gantryv1.InstanceTarget) ([]*gantryv1.Instance, error) {
	if t.GetTarget() == "" {
		return nil, fault.New(fault.Invalid, "no instance is named").WithHint("gantry ps -a")
	}
	snap := s.store.Snapshot()
	if i, ok := store.Get[*gantryv1.Instance](snap, t.Target); ok {
		return []*gantryv1.Instance{i}, nil
	}
	var byName, byPrefix []*gantryv1.Instance
	app, name, slot := split(t.App, t.Target)
	for _, i := range store.List[*gantryv1.Instance](snap, "") {
		if matches(i, t.Environment, app, name, slot) {
			byName = append(byName, i)
		}
		if len(t.Target) >= minPrefix && strings.HasPrefix(i.Meta.Key, t.Target) && (t.Environment == "" || i.Environment == t.Environment) {
			byPrefix = append(byPrefix, i)
		}
	}
	if byName = own(byName, app); len(byName) > 0 {
		sort.SliceStable(byName, func(a, b int) bool { return byName[a].Slot < byName[b].Slot })
		return byName, nil
	}
	switch len(byPrefix) {
	case 1:
		return byPrefix, nil
	case 0:
		return nil, fault.New(fault.NotFound, "there is no instance %q", t.Target).WithHint("gantry ps -a")
	}
	return nil, fault.New(fault.Invalid, "%d instances have an ID that begins with %q", len(byPrefix), t.Target).
		WithHint("give more digits: gantry ps -a")
}

// own prefers the app's instances to a `gantry run` instance of the same name.
func own(found []*gantryv1.Instance, app string) []*gantryv1.Instance {
	var out []*gantryv1.Instance
	for _, i := range found {
		if app != "" && i.App == app {
			out = append(out, i)
		}
	}
	if len(out) == 0 {
		return found
	}
	return out
}

const minPrefix = 4

// split reads "app/service.slot" with both ends optional; slot 0 means any.
func split(app, target string) (string, string, int32) {
	if a, rest, ok := strings.Cut(target, "/"); ok {
		app, target = a, rest
	}
	if dot := strings.LastIndexByte(target, '.'); dot > 0 {
		if n, err := strconv.ParseInt(target[dot+1:], 10, 32); err == nil && n > 0 {
			return app, target[:dot], int32(n)
		}
	}
	return app, target, 0
}

func matches(i *gantryv1.Instance, env, app, name string, slot int32) bool {
	if i.Service != name || env != "" && i.Environment != env {
		return false
	}
	if i.App != "" && i.App != app {
		return false
	}
	return slot == 0 || i.Slot == slot
}
