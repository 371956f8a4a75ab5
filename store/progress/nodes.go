package progress

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

// NodeState is what a node means for the instances on it.
type NodeState int

// What a node means for the instances on it.
const (
	NodeServes  NodeState = iota // in use; it need not be ready at the moment
	NodeDrained                  // they are to be moved
	NodeLost                     // down: nobody knows what runs there
	NodeRemoved                  // no longer part of the cluster
)

// NodeIs looks at one node. One that nothing has been heard of is not lost.
func NodeIs(r store.Reader, id string) NodeState {
	n, ok := store.Get[*gantryv1.Node](r, id)
	if !ok {
		return NodeRemoved
	}
	if st, ok := store.Get[*gantryv1.NodeStatus](r, id); ok && st.State == "down" {
		return NodeLost
	}
	if n.Availability == "drain" {
		return NodeDrained
	}
	return NodeServes
}

// Eligible lists the nodes that a global service wants an instance on, in order of their IDs, with those of which that is not
// known yet.
func Eligible(r store.Reader, s *gantryv1.Service) []string {
	var out []string
	spec := placed(r, s)
	for _, n := range store.List[*gantryv1.Node](r, "") {
		st, _ := store.Get[*gantryv1.NodeStatus](r, n.Meta.Key)
		if placement.Eligible(n, st, spec) {
			out = append(out, n.Meta.Key)
		}
	}
	return out
}

// Unsure tells of an eligible node of a global service that it has yet to say something on which that depends: it keeps what it
// has and is given nothing.
func Unsure(r store.Reader, s *gantryv1.Service) func(node string) bool {
	spec := placed(r, s)
	return func(id string) bool {
		n, _ := store.Get[*gantryv1.Node](r, id)
		st, _ := store.Get[*gantryv1.NodeStatus](r, id)
		return placement.Unsure(n, st, spec)
	}
}

// placed is a service as it is to be placed: placement is no part of a release, the platform is.
func placed(r store.Reader, s *gantryv1.Service) *gantryv1.ServiceSpec {
	if rel, ok := store.Get[*gantryv1.Release](r, ReleaseKey(s.Meta.Key, s.Release)); ok {
		return &gantryv1.ServiceSpec{Placement: s.Spec.GetPlacement(), Container: rel.Spec.GetContainer()}
	}
	return s.Spec
}

// ReleaseKey is the key of a service's release, ordered by number.
func ReleaseKey(serviceKey string, number int64) string {
	return fmt.Sprintf("%s/%08d", serviceKey, number)
}

// Pinned is the key of a volume that keeps an instance on its node; "" if it can run elsewhere.
func Pinned(r store.Reader, i *gantryv1.Instance) string {
	spec := i.Spec
	if rel, ok := store.Get[*gantryv1.Release](r, ReleaseKey(Key(i), i.Release)); ok && i.App != "" {
		spec = rel.GetSpec().GetContainer()
	}
	for _, m := range spec.GetMounts() {
		if m.Type != gantryv1.Mount_TYPE_VOLUME || m.Source == "" {
			continue
		}
		if v, ok := store.Get[*gantryv1.Volume](r, m.Source); ok && v.Node != "" && v.Node == i.Node {
			return m.Source
		}
	}
	return ""
}

// lost is the status of an instance whose node is down. It has an error if nothing can be done but wait for the node.
func lost(r store.Reader, i *gantryv1.Instance, st *gantryv1.InstanceStatus) *gantryv1.InstanceStatus {
	c := proto.Clone(st).(*gantryv1.InstanceStatus)
	c.Phase, c.Health, c.Error, c.Hint = gantryv1.InstanceStatus_PHASE_LOST, gantryv1.InstanceStatus_HEALTH_UNSPECIFIED, "", ""
	if i.Desired == gantryv1.Instance_DESIRED_REMOVED {
		return c
	}
	n, _ := store.Get[*gantryv1.Node](r, i.Node)
	name := n.GetName()
	if name == "" {
		name = i.Node
	}
	if v := Pinned(r, i); v != "" {
		c.Error = fmt.Sprintf("is on node %s, which is down, and so is its volume %s", name, v)
		c.Hint = "gantry node show " + name
	} else if i.App == "" {
		c.Error = fmt.Sprintf("is on node %s, which is down", name)
		c.Hint = "gantry node show " + name
	}
	return c
}
