package daemon

import (
	"testing"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestWhatANetworkIsOpenedWith: a machine that takes a cluster over goes on with the network it has only if nothing of that is
// another. What else differs needs no new start.
func TestWhatANetworkIsOpenedWith(t *testing.T) {
	had := &gantryv1.MachineRecord{
		Node:    &gantryv1.Node{Name: "n1", Subnet: "10.210.0.0/20"},
		Cluster: &gantryv1.Cluster{Id: "c1", Overlay: "vxlan", NodeRange: "10.192.0.0/11", VirtualIps: "10.224.0.0/16"},
	}
	for what, c := range map[string]struct {
		change func(*gantryv1.MachineRecord)
		same   bool
	}{
		"overlay":  {func(r *gantryv1.MachineRecord) { r.Cluster.Overlay = "wireguard" }, false},
		"cluster":  {func(r *gantryv1.MachineRecord) { r.Cluster.Id = "c2" }, false},
		"nodes":    {func(r *gantryv1.MachineRecord) { r.Cluster.NodeRange = "172.16.0.0/12" }, false},
		"services": {func(r *gantryv1.MachineRecord) { r.Cluster.VirtualIps = "10.225.0.0/16" }, false},
		"range":    {func(r *gantryv1.MachineRecord) { r.Node.Subnet = "10.192.0.0/22" }, false},
		"roots":    {func(r *gantryv1.MachineRecord) { r.Cluster.Roots, r.Servers = []byte("new"), []string{"10.0.0.2:7450"} }, true},
	} {
		now := proto.Clone(had).(*gantryv1.MachineRecord)
		c.change(now)
		if got := sameNetwork(had, now); got != c.same {
			t.Errorf("%s: the same network %v", what, got)
		}
	}
}
