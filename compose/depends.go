package compose

import (
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// takeDependencies moves depends_on out of the normalized model.
func (m *model) takeDependencies(dict map[string]any) error {
	services, _ := dict["services"].(map[string]any)
	for name, s := range services {
		fields, _ := s.(map[string]any)
		raw, ok := fields["depends_on"]
		if !ok {
			continue
		}
		delete(fields, "depends_on")
		var deps map[string]types.ServiceDependency
		if err := loader.Transform(raw, &deps); err != nil {
			return err
		}
		m.dependsOn[name] = deps
	}
	return nil
}

// checkDependencies names unknown and disabled services and cycles.
func (m *model) checkDependencies() error {
	for _, name := range slices.Sorted(maps.Keys(m.project.Services)) {
		for _, dep := range slices.Sorted(maps.Keys(m.dependsOn[name])) {
			path := []string{"services", name, "depends_on", dep}
			_, enabled := m.project.Services[dep]
			_, disabled := m.project.DisabledServices[dep]
			switch {
			case enabled, !m.dependsOn[name][dep].Required:
			case disabled:
				m.report.invalid(path, "enable its profile with --profile, or set required: false",
					"the service %q is not enabled by any profile", dep)
			default:
				m.report.invalid(path, "add the service, or remove the line", "there is no service %q", dep)
			}
		}
	}
	if cycle := m.cycle(); cycle != nil {
		m.report.invalid([]string{"services", cycle[0], "depends_on", cycle[1]}, "remove one of these dependencies",
			"services wait for one another in a cycle: %s", shortenMessage(strings.Join(cycle, " → ")))
	}
	return m.report.err()
}

// cycle returns services that depend on one another, first and last the same; nil if none do. Each is visited once.
func (m *model) cycle() []string {
	done := map[string]bool{} // false while on the way
	var chain []string
	var visit func(string) []string
	visit = func(name string) []string {
		if finished, seen := done[name]; seen {
			if finished {
				return nil
			}
			return append(slices.Clone(chain[slices.Index(chain, name):]), name)
		}
		done[name] = false
		chain = append(chain, name)
		for _, dep := range slices.Sorted(maps.Keys(m.dependsOn[name])) {
			if _, enabled := m.project.Services[dep]; !enabled {
				continue
			}
			if found := visit(dep); found != nil {
				return found
			}
		}
		chain = chain[:len(chain)-1]
		done[name] = true
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(m.project.Services)) {
		if found := visit(name); found != nil {
			return found
		}
	}
	return nil
}

func (c *converter) dependencies(name string) []*gantryv1.Dependency {
	var out []*gantryv1.Dependency
	for _, dep := range slices.Sorted(maps.Keys(c.model.dependsOn[name])) {
		d := c.model.dependsOn[name][dep]
		if _, enabled := c.model.project.Services[dep]; !enabled {
			continue // not required, or it would have been refused
		}
		out = append(out, &gantryv1.Dependency{
			Service: dep, Required: d.Required, Restart: d.Restart,
			Condition: map[string]gantryv1.Dependency_Condition{
				"":                            gantryv1.Dependency_CONDITION_STARTED,
				types.ServiceConditionStarted: gantryv1.Dependency_CONDITION_STARTED,
				types.ServiceConditionHealthy: gantryv1.Dependency_CONDITION_HEALTHY,
				types.ServiceConditionCompletedSuccessfully: gantryv1.Dependency_CONDITION_COMPLETED_SUCCESSFULLY,
			}[d.Condition],
		})
	}
	return out
}
