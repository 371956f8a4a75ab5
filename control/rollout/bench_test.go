package rollout_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/operation"
)

// BenchmarkDecide is one decision about a service: one that is at rest, and one in the middle of a rollout.
func BenchmarkDecide(b *testing.B) {
	for _, size := range []int32{20, 1000, 100_000} {
		w := newWorld(size, &gantryv1.UpdateConfig{Parallelism: size / 10})
		for n := range size {
			w.instances = append(w.instances, &gantryv1.InstanceView{
				Instance: &gantryv1.Instance{
					Meta: &gantryv1.Meta{Key: fmt.Sprint("i", n), CreatedAt: timestamppb.New(w.now)}, Slot: n + 1, Release: 1,
					Node: "n1", Desired: desiredRunning, Service: "web", App: "a",
				},
				Status: &gantryv1.InstanceStatus{Phase: phaseRunning},
			})
		}
		w.made = int(size)
		w.op.State = operation.Done
		b.Run(fmt.Sprintf("rest-%d", size), func(b *testing.B) {
			in := w.input()
			for b.Loop() {
				rollout.Decide(in)
			}
		})
		w.update()
		b.Run(fmt.Sprintf("rollout-%d", size), func(b *testing.B) {
			in := w.input()
			for b.Loop() {
				rollout.Decide(in)
			}
		})
	}
}
