package rollout

import (
	"fmt"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// BenchmarkManyServices rolls out 500 services of 20 instances, a tenth at a time, with agents that work at once. It reports
// the time that passes of the controller take for all of it, and their number.
func BenchmarkManyServices(b *testing.B) {
	const services, replicas = 500, 20
	s := storetest.New(b)
	spec := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{}, Update: &gantryv1.UpdateConfig{Parallelism: replicas / 10}}
	objects := []store.Object{&gantryv1.Node{Meta: store.NewMeta("n1")}, &gantryv1.Node{Meta: store.NewMeta("n2")}}
	for n := range services {
		name := fmt.Sprintf("web%d", n)
		key := "p/a/" + name
		objects = append(objects,
			&gantryv1.Service{Meta: store.NewMeta(key), Environment: "p", App: "a", Name: name, Replicas: replicas, Release: 1, Spec: spec},
			&gantryv1.Release{Meta: store.NewMeta(ReleaseKey(key, 1)), Service: key, Number: 1, Spec: spec})
	}
	put(b, s, objects...)
	c, sub := leader(b, s)
	settle(b, s, c, sub, 0)
	for b.Loop() {
		passes, spent := 0, time.Duration(0)
		next(b, s)
		for {
			begun := time.Now()
			again := pass(b, c, sub)
			passes, spent = passes+1, spent+time.Since(begun)
			if agents(b, s, 0) {
				continue
			}
			if again.IsZero() {
				break
			}
			later(c, again.Sub(c.now()))
		}
		b.ReportMetric(spent.Seconds(), "s-in-passes")
		b.ReportMetric(float64(passes), "passes")
	}
	for _, op := range store.List[*gantryv1.Operation](s.Snapshot(), "") {
		if operation.Active(op) {
			b.Fatal(op)
		}
	}
}

// next gives every service another release.
func next(b *testing.B, s *store.Store) {
	b.Helper()
	all := store.List[*gantryv1.Service](s.Snapshot(), "")
	for len(all) > 0 {
		chunk := all[:min(50, len(all))]
		all = all[len(chunk):]
		update(b, s, func(tx *store.Tx) error {
			for _, o := range chunk {
				err := store.Modify(tx, o.Meta.Key, func(o *gantryv1.Service) error {
					o.PreviousRelease, o.Release = o.Release, o.Release+1
					store.Put(tx, &gantryv1.Release{Meta: store.NewMeta(ReleaseKey(o.Meta.Key, o.Release)), Service: o.Meta.Key, Number: o.Release, Spec: o.Spec})
					rollouts.Begin(tx, o, "", rollouts.CauseUp, time.Now())
					return nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
}
