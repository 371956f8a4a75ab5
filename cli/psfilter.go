package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/appwait"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/fault"
)

// psFilter chooses among instances, with Docker's names where there are any.
type psFilter struct {
	entries []string
	status  []string
	last    int
	latest  bool
	tests   map[string][]string
}

func (f *psFilter) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.entries, "filter", nil, "only those with KEY=VALUE: name, id, service, image, status, health, label, node")
	cmd.Flags().StringArrayVar(&f.status, "status", nil, "only those in this state: running, exited, failed, …")
	cmd.Flags().IntVarP(&f.last, "last", "n", 0, "only the last ones made, so many, ended ones too")
	cmd.Flags().BoolVarP(&f.latest, "latest", "l", false, "only the last one made, ended or not")
}

// parse reads the entries. Several of one key are alternatives, as in Docker.
func (f *psFilter) parse() error {
	f.tests = map[string][]string{}
	if len(f.status) > 0 {
		f.tests["status"] = slices.Clone(f.status)
	}
	for _, entry := range f.entries {
		key, value, ok := strings.Cut(entry, "=")
		if !ok || value == "" {
			return fault.New(fault.Invalid, "filter %q is not KEY=VALUE", entry).WithHint("write it like status=running or label=tier=web")
		}
		if key == "ancestor" {
			key = "image"
		}
		if !slices.Contains([]string{"name", "id", "service", "image", "status", "health", "label", "node"}, key) {
			return fault.New(fault.Invalid, "there is no filter %q", key).WithHint("name, id, service, image, status, health, label or node")
		}
		f.tests[key] = append(f.tests[key], value)
	}
	if f.latest {
		f.last = 1
	}
	if f.last < 0 {
		return fault.New(fault.Invalid, "%d containers cannot be shown", f.last).WithHint("write it like -n 5")
	}
	return nil
}

// ended reports that instances that do not run are asked for.
func (f *psFilter) ended() bool {
	return f.last > 0 || len(f.tests["status"]) > 0 || len(f.tests["health"]) > 0
}

// match looks at one instance.
func (f *psFilter) match(p *psView, v *gantryv1.InstanceView) bool {
	for key, values := range f.tests {
		if !slices.ContainsFunc(values, func(want string) bool { return f.has(p, v, key, want) }) {
			return false
		}
	}
	return true
}

func (f *psFilter) has(p *psView, v *gantryv1.InstanceView, key, want string) bool {
	i, st := v.GetInstance(), v.GetStatus()
	switch key {
	case "name":
		return strings.Contains(instanceName(i, p.app), want)
	case "id":
		return strings.HasPrefix(i.GetMeta().GetKey(), want)
	case "service":
		return i.GetService() == want
	case "image":
		return sameImage(p.image(i), want)
	case "status":
		return statusWord(st) == want
	case "health":
		return healthOf(st) == want
	case "node":
		return i.GetNode() == want || p.nodes.Name(i.GetNode()) == want
	}
	name, value, valued := strings.Cut(want, "=")
	got, ok := p.spec(i).GetLabels()[name]
	return ok && (!valued || got == value)
}

// statusWord is the state in Docker's words.
func statusWord(st *gantryv1.InstanceStatus) string {
	if st.GetPhase() == gantryv1.InstanceStatus_PHASE_RUNNING {
		return "running"
	}
	return appwait.PhaseWord(st)
}

func healthOf(st *gantryv1.InstanceStatus) string {
	if st.GetHealth() == gantryv1.InstanceStatus_HEALTH_UNSPECIFIED {
		return "none"
	}
	return strings.TrimPrefix(healthWord(st.GetHealth()), "health: ")
}

// sameImage compares names as people write them: without a tag, any will do.
func sameImage(image, want string) bool {
	image, want = verb.ShortImage(image), verb.ShortImage(want)
	return image == want || strings.HasPrefix(image, want+":")
}

// newest keeps the last ones made.
func (f *psFilter) newest(found []*gantryv1.InstanceView) []*gantryv1.InstanceView {
	if f.last == 0 || len(found) <= f.last {
		return found
	}
	slices.SortStableFunc(found, func(a, b *gantryv1.InstanceView) int {
		return b.GetInstance().GetMeta().GetCreatedAt().AsTime().Compare(a.GetInstance().GetMeta().GetCreatedAt().AsTime())
	})
	return found[:f.last]
}
