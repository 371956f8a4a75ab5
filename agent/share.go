package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/fault"
)

// sharedNamespace is a namespace that the spec wants to share with another instance.
type sharedNamespace struct{ kind, target string }

// what says which namespace it is, in an error.
func (s sharedNamespace) what() string {
	if s.kind == "net" {
		return "network"
	}
	return s.kind + " namespace"
}

func errNoPeer(ns sharedNamespace) error {
	return fault.New(fault.Unavailable, "%q, whose %s is to be shared, does not run on this machine", ns.target, ns.what()).
		WithHint("gantry ps -a")
}

func sharedNamespaces(spec *gantryv1.ContainerSpec) []sharedNamespace {
	var out []sharedNamespace
	switch n := spec.GetNetwork(); n.GetKind() {
	case gantryv1.NetworkMode_KIND_SERVICE, gantryv1.NetworkMode_KIND_CONTAINER:
		out = append(out, sharedNamespace{"net", n.GetTarget()})
	}
	for kind, mode := range map[string]string{"pid": spec.GetPidMode(), "ipc": spec.GetIpcMode()} {
		if _, target, shared := strings.Cut(mode, ":"); shared {
			out = append(out, sharedNamespace{kind, target})
		}
	}
	return out
}

// joins names the instances whose namespaces are shared, and the processes for those namespaces that end with a process.
func (w *worker) joins(as *gantryv1.Assignment) (string, error) {
	var parts []string
	for _, ns := range sharedNamespaces(as.Spec) {
		other := w.peer(as.Instance, ns.target)
		if other == nil {
			return "", errNoPeer(ns)
		}
		part := ns.kind + ":" + other.id
		if ns.kind != "net" {
			part += fmt.Sprintf("@%d", other.status().GetPid())
		}
		parts = append(parts, part)
	}
	slices.Sort(parts)
	return strings.Join(parts, " "), nil
}

// noteJoined notes whose namespaces the container is about to share. What changes after it is seen by moved.
func (w *worker) noteJoined(as *gantryv1.Assignment) error {
	joined, err := w.joins(as)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rec.Joined = joined
	return nil
}

// moved reports that the container shares namespaces of instances that are no longer those it should share with.
func (w *worker) moved(as *gantryv1.Assignment) (bool, error) {
	now, err := w.joins(as)
	if err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return now != w.rec.Joined, nil
}

// pokeJoined wakes the workers whose instances share namespaces with one that has just started. One that could not be made
// without it is tried again at once.
func (a *Agent) pokeJoined(started *gantryv1.Instance) {
	for _, w := range a.all() {
		i := w.assignment()
		if i.Instance.Environment == started.Environment && i.Instance.Meta.Key != started.Meta.Key && len(sharedNamespaces(i.Spec)) > 0 {
			w.hurry()
		}
	}
}

// hurry ends the wait for the next attempt.
func (w *worker) hurry() {
	w.mu.Lock()
	w.notBefore = time.Time{}
	w.mu.Unlock()
	w.poke()
}

// share resolves PID and IPC namespaces of other instances.
func (w *worker) share(as *gantryv1.Assignment, req *engine.CreateRequest) error {
	for _, ns := range sharedNamespaces(as.Spec) {
		if ns.kind == "net" {
			continue
		}
		other := w.peer(as.Instance, ns.target)
		if other == nil || other.status().GetPid() == 0 {
			return errNoPeer(ns)
		}
		path := fmt.Sprintf("/proc/%d/ns/%s", other.status().Pid, ns.kind)
		if ns.kind == "pid" {
			req.PidNS = path
		} else {
			req.IpcNS = path
		}
	}
	return nil
}

// peer finds an instance of this machine and environment by ID, name, or service of the same app. One that is going is none.
func (w *worker) peer(of *gantryv1.Instance, target string) *worker {
	joined := w.joined()
	var found *worker
	var best *gantryv1.Instance
	for _, c := range w.a.all() {
		i := c.assignment().Instance
		if i.Environment != of.Environment || i.Meta.Key == of.Meta.Key || i.Desired == gantryv1.Instance_DESIRED_REMOVED {
			continue
		}
		if i.Meta.Key == target {
			return c
		}
		if i.Service != target || i.App != of.App && i.App != "" {
			continue
		}
		if best == nil || nearer(i, best, of.Slot, joined) {
			found, best = c, i
		}
	}
	return found
}

// nearer reports that a is rather the one to share with than b: the one of the same slot, else the one that it shares with
// already, so that an update beside the old instance moves nobody before that one goes.
func nearer(a, b *gantryv1.Instance, slot int32, joined map[string]bool) bool {
	if x, y := a.Slot == slot, b.Slot == slot; x != y {
		return x
	}
	if x, y := joined[a.Meta.Key], joined[b.Meta.Key]; x != y {
		return x
	}
	return cmp.Or(cmp.Compare(b.Release, a.Release), cmp.Compare(a.Meta.Key, b.Meta.Key)) < 0
}

// joined are the IDs of the instances whose namespaces the container was made to share.
func (w *worker) joined() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := map[string]bool{}
	for _, part := range strings.Fields(w.rec.Joined) {
		_, id, _ := strings.Cut(part, ":")
		id, _, _ = strings.Cut(id, "@")
		ids[id] = true
	}
	return ids
}
