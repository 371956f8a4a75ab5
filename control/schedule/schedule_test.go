package schedule

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/storetest"
)

func write(t testing.TB, s *store.Store, objects ...store.Object) {
	t.Helper()
	var seen []store.Object
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		seen = nil
		for _, o := range objects {
			if st, ok := o.(*gantryv1.NodeStatus); ok {
				seen = append(seen, st)
				continue
			}
			store.Put(tx, o)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Observe(seen, nil)
}

func start(t testing.TB, s *store.Store) *Figures {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	c := New(s, slog.New(slog.DiscardHandler))
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the scheduler ended: %v", err)
		}
	})
	return c.Figures()
}

// await blocks until the snapshot is as wanted.
func await(t testing.TB, s *store.Store, what string, ok func(r *store.ReadTx) bool) {
	t.Helper()
	sub, err := s.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !ok(s.Snapshot()) {
		if _, err := sub.Next(ctx); err != nil {
			t.Fatalf("%s: %v: %v", what, err, store.List[*gantryv1.Instance](s.Snapshot(), ""))
		}
	}
}

func nodeOf(r store.Reader, id string) string {
	i, _ := store.Get[*gantryv1.Instance](r, id)
	return i.GetNode()
}

func TestControllerFollowsTheStore(t *testing.T) {
	s := storetest.New(t)
	write(t, s, cluster(2, 0)...)
	write(t, s, serviceOf("web", nil)...)
	write(t, s, instanceOf(1, "web", ""))
	figures := start(t, s)
	await(t, s, "placed at the start", func(r *store.ReadTx) bool { return nodeOf(r, "i000001") != "" })

	spec := &gantryv1.ContainerSpec{
		Resources: &gantryv1.Resources{MemoryReservation: 400 * gib},
		Mounts:    []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "p/data", Target: "/d"}},
	}
	write(t, s, &gantryv1.Volume{Meta: store.NewMeta("p/data")},
		&gantryv1.Instance{Meta: store.NewMeta("run1"), Environment: "p", Service: "first", Desired: running, Spec: spec})
	await(t, s, "placed and its volume with it", func(r *store.ReadTx) bool {
		v, _ := store.Get[*gantryv1.Volume](r, "p/data")
		return v.GetNode() != "" && v.GetNode() == nodeOf(r, "run1")
	})

	write(t, s, &gantryv1.Instance{Meta: store.NewMeta("run2"), Environment: "p", Service: "second", Desired: running, Spec: spec})
	await(t, s, "told why it waits", func(r *store.ReadTx) bool {
		st, _ := store.Get[*gantryv1.InstanceStatus](r, "run2")
		return strings.Contains(st.GetError(), "1 lacks memory") && strings.Contains(st.GetError(), "volume p/data") && st.Hint != ""
	})
	if count, _, _ := figures.Passes.Read(); figures.Placed.Value() != 2 || figures.Waiting.Value() != 1 || count < 2 {
		t.Errorf("%d placed, %d wait, %d passes", figures.Placed.Value(), figures.Waiting.Value(), count)
	}
	gone, _ := store.Get[*gantryv1.Instance](s.Snapshot(), "run1")
	err := s.Update(t.Context(), func(tx *store.Tx) error { store.Delete[*gantryv1.Instance](tx, gone.Meta.Key); return nil })
	if err != nil {
		t.Fatal(err)
	}
	await(t, s, "placed when there is room, and the reason taken back", func(r *store.ReadTx) bool {
		_, told := store.Get[*gantryv1.InstanceStatus](r, "run2")
		return nodeOf(r, "run2") != "" && !told
	})
}

// TestADrainIsNotOverrun drains nodes while instances are being placed: none is put on a node that was drained before.
func TestADrainIsNotOverrun(t *testing.T) {
	s := storetest.New(t)
	write(t, s, cluster(2, 0)...)
	write(t, s, serviceOf("web", nil)...)
	start(t, s)
	for round := range 20 {
		drained := fmt.Sprintf("n%04d", round%2)
		set := func(to string) {
			err := s.Update(t.Context(), func(tx *store.Tx) error {
				return store.Modify(tx, drained, func(n *gantryv1.Node) error { n.Availability = to; return nil })
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		set("drain")
		i := instanceOf(round, "web", "")
		write(t, s, i)
		await(t, s, "placed", func(r *store.ReadTx) bool { return nodeOf(r, i.Meta.Key) != "" })
		if at := nodeOf(s.Snapshot(), i.Meta.Key); at == drained {
			t.Fatalf("round %d: put on %s", round, at)
		}
		set("active")
	}
}

// TestAVolumeIsNotWhereItsInstanceCannotBe: a node that was drained or removed since it was chosen is given neither.
func TestAVolumeIsNotWhereItsInstanceCannotBe(t *testing.T) {
	for what, change := range map[string]func(*store.Tx) error{
		"drained": func(tx *store.Tx) error {
			return store.Modify(tx, "n0000", func(n *gantryv1.Node) error { n.Availability = "drain"; return nil })
		},
		"removed": func(tx *store.Tx) error { store.Delete[*gantryv1.Node](tx, "n0000"); return nil },
	} {
		t.Run(what, func(t *testing.T) {
			s := storetest.New(t)
			write(t, s, cluster(2, 0)...)
			i := instanceOf(1, "web", "")
			write(t, s, i, &gantryv1.Volume{Meta: store.NewMeta("p/data")})
			if err := s.Update(t.Context(), change); err != nil {
				t.Fatal(err)
			}
			c := New(s, slog.New(slog.DiscardHandler))
			stale := plan{assign: []assignment{{i.Meta.Key, "n0000"}}, pins: []placement.Pin{{Volume: "p/data", Node: "n0000"}}}
			if err := c.commit(t.Context(), stale); !fault.Is(err, fault.Conflict) {
				t.Errorf("%v", err)
			}
			if v, _ := store.Get[*gantryv1.Volume](s.Snapshot(), "p/data"); v.Node != "" {
				t.Errorf("the volume is on %s", v.Node)
			}
			stale.assign = nil
			if err := c.commit(t.Context(), stale); fault.Is(err, fault.Conflict) != (what == "removed") {
				t.Errorf("the volume of an instance that is there: %v", err)
			}
		})
	}
}

// BenchmarkAssigned is the time from an instance's creation until it has a node, with the state's disk.
func BenchmarkAssigned(b *testing.B) {
	for _, size := range [][2]int{{10, 1000}, {1000, 20_000}} {
		b.Run(fmt.Sprintf("nodes=%d/instances=%d", size[0], size[1]), func(b *testing.B) {
			s := storetest.New(b)
			all := append(cluster(size[0], size[1]), serviceOf("new", nil)...)
			for len(all) > 0 {
				n := min(len(all), 2000)
				write(b, s, all[:n]...)
				all = all[n:]
			}
			start(b, s)
			n := 0
			for b.Loop() {
				n++
				i := instanceOf(1_000_000+n, "new", "")
				write(b, s, i)
				await(b, s, "placed", func(r *store.ReadTx) bool { return nodeOf(r, i.Meta.Key) != "" })
				if err := s.Update(b.Context(), func(tx *store.Tx) error { store.Delete[*gantryv1.Instance](tx, i.Meta.Key); return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStored places 20,000 instances on 1,000 nodes through the store.
func BenchmarkStored(b *testing.B) {
	const total = 20_000
	for b.Loop() {
		b.StopTimer()
		s := storetest.New(b)
		write(b, s, append(cluster(1000, 0), serviceOf("web", nil)...)...)
		for n := 0; n < total; n += 2000 {
			var objects []store.Object
			for k := range 2000 {
				objects = append(objects, instanceOf(n+k, "web", ""))
			}
			write(b, s, objects...)
		}
		b.StartTimer()
		start(b, s)
		await(b, s, "all placed", func(r *store.ReadTx) bool {
			for n := total - 1; n >= 0; n-- {
				if nodeOf(r, fmt.Sprintf("i%06d", n)) == "" {
					return false
				}
			}
			return true
		})
	}
	b.ReportMetric(float64(total*b.N)/b.Elapsed().Seconds(), "placements/s")
}
