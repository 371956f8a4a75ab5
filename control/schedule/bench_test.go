package schedule

import (
	"fmt"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

// cluster is a number of machines, empty but for instances of services of 20.
func cluster(nodes, placed int) (objects []store.Object) {
	for n := range nodes {
		id := fmt.Sprintf("n%04d", n)
		objects = append(objects,
			&gantryv1.Node{Meta: &gantryv1.Meta{Key: id, Labels: map[string]string{"rack": fmt.Sprint(n % 10)}}, Name: id, Subnet: "10.64.0.0/23"},
			&gantryv1.NodeStatus{Meta: store.NewMeta(id), State: "ready", NanoCpus: 64e9, Memory: 512 * gib})
	}
	for i := range placed {
		if i%20 == 0 {
			objects = append(objects, serviceOf(fmt.Sprintf("s%05d", i/20), nil)...)
		}
		objects = append(objects, instanceOf(i, fmt.Sprintf("s%05d", i/20), fmt.Sprintf("n%04d", i%nodes)))
	}
	return objects
}

func serviceOf(name string, p *gantryv1.Placement) []store.Object {
	spec := &gantryv1.ServiceSpec{Placement: p, Container: &gantryv1.ContainerSpec{Resources: &gantryv1.Resources{MemoryReservation: 64 << 20, NanoCpusReservation: 1e7}}}
	key := "p/a/" + name
	return []store.Object{
		&gantryv1.Service{Meta: store.NewMeta(key), Environment: "p", App: "a", Name: name, Release: 1, Spec: spec},
		&gantryv1.Release{Meta: store.NewMeta(key + "/00000001"), Service: key, Number: 1, Spec: spec},
	}
}

func instanceOf(n int, service, node string) *gantryv1.Instance {
	return &gantryv1.Instance{Meta: store.NewMeta(fmt.Sprintf("i%06d", n)), Environment: "p", App: "a", Service: service, Slot: 1, Release: 1, Desired: running, Node: node}
}

// BenchmarkOne is the decision on one new instance, and its end.
func BenchmarkOne(b *testing.B) {
	for _, size := range [][2]int{{10, 1000}, {100, 10_000}, {1000, 100_000}} {
		b.Run(fmt.Sprintf("nodes=%d/instances=%d", size[0], size[1]), func(b *testing.B) {
			r := store.Fixed(append(cluster(size[0], size[1]), serviceOf("new", nil)...)...)
			p := newPlanner(r)
			b.ResetTimer()
			for n := range b.N {
				i := instanceOf(1_000_000+n, "new", "")
				p.apply(r, []store.Event{{New: i}})
				if out, _ := p.plan(batch); len(out.assign) != 1 {
					b.Fatal("not placed")
				}
				p.apply(r, []store.Event{{Old: i}})
			}
		})
	}
}

// BenchmarkBulk places 100,000 instances on 1,000 empty nodes.
func BenchmarkBulk(b *testing.B) {
	for name, services := range map[string]int{"one": 1, "500 services": 500} {
		for prefer, p := range map[string]*gantryv1.Placement{"spread": nil, "racks": {Preferences: []string{"node.labels.rack"}}, "binpack": {Strategy: "binpack"}} {
			b.Run(name+"/"+prefer, func(b *testing.B) {
				objects := cluster(1000, 0)
				for s := range services {
					objects = append(objects, serviceOf(fmt.Sprint("b", s), p)...)
				}
				const total = 100_000
				for n := range total {
					objects = append(objects, instanceOf(n, fmt.Sprint("b", n%services), ""))
				}
				r := store.Fixed(objects...)
				b.ResetTimer()
				for range b.N {
					b.StopTimer()
					planner := newPlanner(r)
					b.StartTimer()
					placed := 0
					for more := true; more; {
						var out plan
						out, more = planner.plan(batch)
						placed += len(out.assign)
					}
					if placed != total {
						b.Fatalf("%d placed", placed)
					}
				}
				b.ReportMetric(float64(total*b.N)/b.Elapsed().Seconds(), "placements/s")
			})
		}
	}
}

// BenchmarkRead is what a new leader does first.
func BenchmarkRead(b *testing.B) {
	r := store.Fixed(cluster(1000, 100_000)...)
	for b.Loop() {
		newPlanner(r)
	}
}
