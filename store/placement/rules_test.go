package placement_test

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store/placement"
)

// TestWhatANodeHasNotSaidExcludesNothing: its architecture may be the one that is asked for.
func TestWhatANodeHasNotSaidExcludesNothing(t *testing.T) {
	n := &gantryv1.Node{Meta: &gantryv1.Meta{Key: "n", Labels: map[string]string{"rack": "r1"}}}
	down, amd, arm := &gantryv1.NodeStatus{State: "down"}, &gantryv1.NodeStatus{Architecture: "x86_64"}, &gantryv1.NodeStatus{Architecture: "arm64"}
	for name, test := range map[string]struct {
		st               *gantryv1.NodeStatus
		platform         string
		constraints      []string
		eligible, unsure bool
	}{
		"not heard of":         {nil, "", []string{"node.platform.arch == amd64"}, true, true},
		"not, other than":      {nil, "", []string{"node.platform.arch != amd64"}, true, true},
		"not, by its platform": {nil, "linux/amd64", nil, true, true},
		"not, and excluded":    {nil, "", []string{"node.platform.arch == amd64", "node.labels.rack == r2"}, false, true},
		"not, never mind":      {nil, "", []string{"node.labels.rack == r1"}, true, false},
		"down since":           {down, "", []string{"node.platform.arch == amd64"}, true, true},
		"as it is asked for":   {amd, "linux/amd64", []string{"node.platform.arch == amd64"}, true, false},
		"another":              {arm, "", []string{"node.platform.arch == amd64"}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Platform: test.platform}, Placement: &gantryv1.Placement{Constraints: test.constraints}}
			if got := placement.Eligible(n, test.st, s); got != test.eligible {
				t.Errorf("eligible: %v", got)
			}
			if got := placement.Unsure(n, test.st, s); got != test.unsure {
				t.Errorf("unsure: %v", got)
			}
			if got := placement.Meets(n, test.st, s); got != test.eligible {
				t.Errorf("meets: %v", got)
			}
		})
	}
}
