package machines

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// TestTakeOverGivesARangeOfItsOwn: a machine that the restored state does not know has a range that it, or another cluster, has
// chosen without knowing of those in it. One that it knows keeps what it has there.
func TestTakeOverGivesARangeOfItsOwn(t *testing.T) {
	for name, c := range map[string]struct{ key, has, want string }{
		"nobody has it":                     {"new", "10.210.0.0/20", "10.210.0.0/20"},
		"another node has it":               {"new", "10.192.0.0/22", "10.192.8.0/22"},
		"another node has a part of it":     {"new", "10.192.0.0/20", "10.192.8.0/22"},
		"it is a part of another node's":    {"new", "10.192.1.0/24", "10.192.8.0/22"},
		"services have it":                  {"new", "10.224.8.0/22", "10.192.8.0/22"},
		"it is not of the cluster's":        {"new", "172.20.0.0/22", "10.192.8.0/22"},
		"it holds more than the cluster's":  {"new", "10.0.0.0/8", "10.192.8.0/22"},
		"there is none":                     {"new", "", "10.192.8.0/22"},
		"the machine is known with another": {"second", "10.210.0.0/20", "10.192.4.0/22"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			check(t, b.store.Update(t.Context(), func(tx *store.Tx) error {
				for _, n := range store.List[*gantryv1.Node](tx, "") {
					store.Delete[*gantryv1.Node](tx, n.Meta.Key)
				}
				for key, subnet := range map[string]string{"first": "10.192.0.0/22", "second": "10.192.4.0/22"} {
					store.Put(tx, &gantryv1.Node{Meta: store.NewMeta(key), Name: key, Role: "server", ApiAddress: key + ":7450", Subnet: subnet})
				}
				return nil
			}))
			_, own, err := TakeOver(t.Context(), b.store, &gantryv1.Node{
				Meta: store.NewMeta(c.key), Name: c.key, Role: "server", Member: "m9", ApiAddress: c.key + ":7450", Subnet: c.has,
			})
			check(t, err)
			kept, ok := store.Get[*gantryv1.Node](b.store.Snapshot(), c.key)
			if !ok || own.Subnet != c.want || kept.Subnet != c.want {
				t.Errorf("it has %s, and the state says %s; want %s", own.Subnet, kept.GetSubnet(), c.want)
			}
		})
	}
}
