package progress

import (
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

// WithDependents adds to names of services of an app (key "env/app/") those that run and are to be
// restarted with them, and with those.
func WithDependents(r store.Reader, app string, names []string) []string {
	out := slices.Clone(names)
	all := store.List[*gantryv1.Service](r, app)
	for n := 0; n < len(out); n++ {
		for _, s := range all {
			if !s.Removing && !s.Stopped && !slices.Contains(out, s.Name) && RestartsWith(s, out[n]) {
				out = append(out, s.Name)
			}
		}
	}
	return out
}

// RestartsWith reports that a service wants to be restarted when the named one has been. One that shares its namespaces is
// made anew in any case.
func RestartsWith(s *gantryv1.Service, name string) bool {
	return !slices.Contains(placement.DemandOf(s.GetSpec().GetContainer()).Joins, name) && slices.ContainsFunc(s.GetSpec().GetDependsOn(), func(d *gantryv1.Dependency) bool { return d.Service == name && d.Restart })
}
