package server

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// appIndex is a number that stands for what a plan for an app is made from. It is a hash and no revision: a revision would
// not show that an object has gone, and would change with what a rollout notes on its way.
func appIndex(r store.Reader, app string) int64 {
	h := sha256.New()
	if a, ok := store.Get[*gantryv1.App](r, app); ok {
		digest(h, "app", a.Spec)
	}
	for _, s := range store.List[*gantryv1.Service](r, app+"/") {
		digest(h, "service "+s.Meta.Key, &gantryv1.Service{
			Spec: s.Spec, Release: s.Release, Stopped: s.Stopped, Removing: s.Removing, Replicas: s.Replicas, VirtualIp: s.VirtualIp,
		})
	}
	for _, n := range store.List[*gantryv1.Network](r, app+"/") {
		digest(h, "network "+n.Meta.Key, &gantryv1.Network{Internal: n.Internal})
	}
	for _, v := range store.List[*gantryv1.Volume](r, app+"/") {
		digest(h, "volume "+v.Meta.Key, &gantryv1.Volume{Driver: v.Driver, DriverOptions: v.DriverOptions})
	}
	for _, s := range store.List[*gantryv1.Secret](r, app+"/") {
		digest(h, "secret "+s.Meta.Key, &gantryv1.Secret{Version: s.Version})
	}
	for _, c := range store.List[*gantryv1.Config](r, app+"/") {
		digest(h, "config "+c.Meta.Key, &gantryv1.Config{Version: c.Version})
	}
	const digits = 1e12 // short enough to be typed
	return int64(binary.BigEndian.Uint64(h.Sum(nil))%digits) + 1
}

// digest adds one object under a name.
func digest(h hash.Hash, name string, m proto.Message) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // only for text that is not UTF-8, which the store has refused
		b = []byte(err.Error())
	}
	fmt.Fprintf(h, "%s %d\n", name, len(b))
	h.Write(b)
}

func errStale(req *gantryv1.ApplyRequest, index int64) error {
	return fault.New(fault.Conflict, "app %q has changed since it was planned: its index is %d, not %d", req.App, index, req.CheckIndex).
		WithHint("gantry plan shows what would be changed now")
}
