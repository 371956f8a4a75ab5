package schedule

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

const (
	gib     = 1 << 30
	running = gantryv1.Instance_DESIRED_RUNNING
	removed = gantryv1.Instance_DESIRED_REMOVED
)

// world is what the store holds, with a planner that follows it.
type world struct {
	objects map[string]store.Object
	planner *planner
	made    int
}

func newWorld() *world {
	w := &world{objects: map[string]store.Object{}}
	w.planner = newPlanner(store.Fixed())
	return w
}

func path(o store.Object) string { return fmt.Sprintf("%T/%s", o, o.GetMeta().GetKey()) }

func (w *world) reader() *store.ReadTx { return store.Fixed(slices.Collect(maps.Values(w.objects))...) }

// put stores objects and has the planner hear of them.
func (w *world) put(objects ...store.Object) {
	var events []store.Event
	for _, o := range objects {
		ev := store.Event{New: o}
		if old := w.objects[path(o)]; old != nil {
			ev.Old = old
		}
		w.objects[path(o)] = o
		events = append(events, ev)
	}
	w.planner.apply(w.reader(), events)
}

func (w *world) remove(o store.Object) {
	old := w.objects[path(o)]
	delete(w.objects, path(o))
	w.planner.apply(w.reader(), []store.Event{{Old: old}})
}

func (w *world) node(id string, change ...func(*gantryv1.Node, *gantryv1.NodeStatus)) {
	n := &gantryv1.Node{Meta: &gantryv1.Meta{Key: id, Labels: map[string]string{}}, Name: "name-" + id, Role: "node", Availability: "active"}
	st := &gantryv1.NodeStatus{Meta: store.NewMeta(id), State: "ready", NanoCpus: 4e9, Memory: 8 * gib, Architecture: "amd64"}
	for _, fn := range change {
		fn(n, st)
	}
	w.put(n, st)
}

func labelled(name, value string) func(*gantryv1.Node, *gantryv1.NodeStatus) {
	return func(n *gantryv1.Node, _ *gantryv1.NodeStatus) { n.Meta.Labels[name] = value }
}

// service stores a service with its release and so many pending instances.
func (w *world) service(name string, instances int, change ...func(*gantryv1.ServiceSpec)) {
	spec := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Resources: &gantryv1.Resources{}}, Placement: &gantryv1.Placement{}}
	for _, fn := range change {
		fn(spec)
	}
	key := "p/a/" + name
	w.put(&gantryv1.Service{Meta: store.NewMeta(key), Environment: "p", App: "a", Name: name, Release: 1, Replicas: int32(instances), Spec: spec},
		&gantryv1.Release{Meta: store.NewMeta(key + "/00000001"), Service: key, Number: 1, Spec: spec})
	for slot := range instances {
		w.instance(name, int32(slot+1))
	}
}

func (w *world) instance(service string, slot int32) {
	w.made++
	w.put(&gantryv1.Instance{
		Meta: store.NewMeta(fmt.Sprintf("i%04d", w.made)), Environment: "p", App: "a", Service: service, Slot: slot, Release: 1, Desired: running,
	})
}

func memory(bytes int64) func(*gantryv1.ServiceSpec) {
	return func(s *gantryv1.ServiceSpec) { s.Container.Resources.MemoryReservation = bytes }
}

func priority(n int32) func(*gantryv1.ServiceSpec) {
	return func(s *gantryv1.ServiceSpec) { s.Priority = n }
}

func rules(fn func(*gantryv1.Placement)) func(*gantryv1.ServiceSpec) {
	return func(s *gantryv1.ServiceSpec) { fn(s.Placement) }
}

func container(fn func(*gantryv1.ContainerSpec)) func(*gantryv1.ServiceSpec) {
	return func(s *gantryv1.ServiceSpec) { fn(s.Container) }
}

// carry makes one plan and carries it out; it reports whether there was anything to do.
func (w *world) carry() bool {
	out, more := w.planner.plan(batch)
	for _, a := range out.assign {
		i := w.get(a.instance)
		i.Node = a.node
		w.put(i)
	}
	for _, pin := range out.pins {
		w.put(&gantryv1.Volume{Meta: store.NewMeta(pin.Volume), Node: pin.Node})
	}
	for _, e := range out.evict {
		i := w.get(e.instance)
		i.Desired = removed
		w.put(i)
	}
	return more || !out.empty()
}

func (w *world) get(id string) *gantryv1.Instance {
	return proto.Clone(w.objects["*gantryv1.Instance/"+id]).(*gantryv1.Instance)
}

func (w *world) settle(t rapid.TB) {
	t.Helper()
	for range 100 {
		if !w.carry() {
			return
		}
	}
	t.Fatal("planning does not come to an end")
}

// leave has the nodes take away what is to be removed, as the rollout does with what has no node.
func (w *world) leave() (left []*gantryv1.Instance) {
	for _, i := range w.instances() {
		if i.Desired == removed {
			w.remove(i)
			left = append(left, i)
		}
	}
	return left
}

func (w *world) instances() []*gantryv1.Instance {
	return store.List[*gantryv1.Instance](w.reader(), "")
}

// where is "service: node×number …" for each service.
func (w *world) where() string {
	per := map[string]map[string]int{}
	for _, i := range w.instances() {
		if per[i.Service] == nil {
			per[i.Service] = map[string]int{}
		}
		node := i.Node
		if node == "" {
			node = "-"
		}
		if i.Desired == removed {
			node = "(" + node + ")"
		}
		per[i.Service][node]++
	}
	var out []string
	for _, s := range slices.Sorted(maps.Keys(per)) {
		line := s + ":"
		for _, n := range slices.Sorted(maps.Keys(per[s])) {
			line += fmt.Sprintf(" %s×%d", n, per[s][n])
		}
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

func TestPlace(t *testing.T) {
	racks := func(w *world) {
		for n, rack := range []string{"r1", "r1", "r1", "r2"} {
			w.node(fmt.Sprintf("n%d", n+1), labelled("rack", rack))
		}
	}
	two := func(w *world) { w.node("n1"); w.node("n2") }
	for _, test := range []struct {
		name  string
		world func(w *world)
		want  string
	}{
		{"spreads over nodes", func(w *world) { two(w); w.service("web", 4) }, "web: n1×2 n2×2"},
		{"spreads a service, not all of them", func(w *world) { two(w); w.service("a", 1); w.service("b", 1); w.service("c", 2) }, "a: n1×1; b: n2×1; c: n1×1 n2×1"},
		{"goes where there is room", func(w *world) { two(w); w.service("db", 1, memory(6*gib)); w.service("web", 2, memory(3*gib)) },
			"db: n1×1; web: n2×2"},
		{"never over memory", func(w *world) { two(w); w.service("web", 5, memory(4*gib)) }, "web: -×1 n1×2 n2×2"},
		{"never over CPU", func(w *world) {
			two(w)
			w.service("web", 3, container(func(c *gantryv1.ContainerSpec) { c.Resources.NanoCpusReservation = 3e9 }))
		}, "web: -×1 n1×1 n2×1"},
		{"never over process IDs", func(w *world) {
			w.node("n1", func(_ *gantryv1.Node, st *gantryv1.NodeStatus) { st.Pids = 1000 })
			w.service("web", 3, container(func(c *gantryv1.ContainerSpec) { c.Resources.Pids = 400 }))
		}, "web: -×1 n1×2"},
		{"never over addresses", func(w *world) {
			w.node("n1", func(n *gantryv1.Node, _ *gantryv1.NodeStatus) { n.Subnet = "10.64.0.0/29" })
			w.service("web", 6)
			w.service("host", 1, container(func(c *gantryv1.ContainerSpec) {
				c.Network = &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_HOST}
			}))
		}, "host: n1×1; web: -×1 n1×5"},
		{"devices are counted", func(w *world) {
			w.node("n1")
			w.node("n2", func(_ *gantryv1.Node, st *gantryv1.NodeStatus) { st.Devices = map[string]int32{"gpu": 3} })
			w.service("ml", 2, container(func(c *gantryv1.ContainerSpec) { c.Resources.NamedDevices = map[string]int32{"gpu": 2} }))
		}, "ml: -×1 n2×1"},
		{"constraints", func(w *world) {
			racks(w)
			w.service("web", 2, rules(func(p *gantryv1.Placement) { p.Constraints = []string{"node.labels.rack == r2", "node.role != server"} }))
		}, "web: n4×2"},
		{"platform", func(w *world) {
			w.node("n1")
			w.node("n2", func(_ *gantryv1.Node, st *gantryv1.NodeStatus) { st.Architecture = "arm64" })
			w.service("arm", 2, container(func(c *gantryv1.ContainerSpec) { c.Platform = "linux/arm64/v8" }))
			w.service("i386", 2, container(func(c *gantryv1.ContainerSpec) { c.Platform = "linux/386" }))
		}, "arm: n2×2; i386: n1×2"},
		{"preferences come before nodes", func(w *world) {
			racks(w)
			w.service("web", 6, rules(func(p *gantryv1.Placement) { p.Preferences = []string{"node.labels.rack"} }))
		}, "web: n1×1 n2×1 n3×1 n4×3"},
		{"a full rack leaves the rest to others", func(w *world) {
			racks(w)
			w.service("web", 6, memory(5*gib), rules(func(p *gantryv1.Placement) { p.Preferences = []string{"node.labels.rack"} }))
		}, "web: -×2 n1×1 n2×1 n3×1 n4×1"},
		{"binpack fills one node", func(w *world) {
			two(w)
			w.service("web", 3, memory(4*gib), rules(func(p *gantryv1.Placement) { p.Strategy = "binpack" }))
		}, "web: n1×2 n2×1"},
		{"so many per node at most", func(w *world) {
			two(w)
			w.service("web", 3, rules(func(p *gantryv1.Placement) { p.MaxReplicasPerNode = 1 }))
		}, "web: -×1 n1×1 n2×1"},
		{"kept apart by what they say", func(w *world) {
			two(w)
			w.service("a", 1)
			w.service("b", 2, rules(func(p *gantryv1.Placement) { p.AntiAffinity = []string{"a"} }))
		}, "a: n1×1; b: n2×2"},
		{"kept apart by what others say", func(w *world) {
			two(w)
			w.service("b", 1, rules(func(p *gantryv1.Placement) { p.AntiAffinity = []string{"a"} }))
			w.settle(t)
			w.service("a", 2)
		}, "a: n2×2; b: n1×1"},
		{"kept apart from its own", func(w *world) {
			two(w)
			w.service("b", 3, rules(func(p *gantryv1.Placement) { p.AntiAffinity = []string{"b"} }))
		}, "b: -×1 n1×1 n2×1"},
		{"drained, silent and down nodes get nothing", func(w *world) {
			w.node("n1", func(n *gantryv1.Node, _ *gantryv1.NodeStatus) { n.Availability = "drain" })
			w.node("n2", func(_ *gantryv1.Node, st *gantryv1.NodeStatus) { st.State = "down" })
			w.node("n3", func(_ *gantryv1.Node, st *gantryv1.NodeStatus) { st.State = "suspect" })
			w.put(&gantryv1.Node{Meta: store.NewMeta("n4")})
			w.service("web", 1)
		}, "web: -×1"},
		{"host ports do not clash", func(w *world) {
			two(w)
			w.service("web", 3, container(func(c *gantryv1.ContainerSpec) {
				c.Ports = []*gantryv1.PortPublish{{HostPort: 80, ContainerPort: 80, Mode: "host"}}
			}))
			w.service("other", 1, container(func(c *gantryv1.ContainerSpec) {
				c.Ports = []*gantryv1.PortPublish{{HostIp: "10.0.0.1", HostPort: 80, Protocol: "tcp", Mode: "host"}}
			}))
			w.service("udp", 1, container(func(c *gantryv1.ContainerSpec) {
				c.Ports = []*gantryv1.PortPublish{{HostPort: 80, Protocol: "udp", Mode: "host"}}
			}))
		}, "other: -×1; udp: n1×1; web: -×1 n1×1 n2×1"},
		{"data pins", func(w *world) {
			two(w)
			w.put(&gantryv1.Volume{Meta: store.NewMeta("p/a/data"), Node: "n2"})
			w.service("db", 3, container(mounts("p/a/data")))
		}, "db: n2×3"},
		{"the first user of a volume decides", func(w *world) {
			two(w)
			w.put(&gantryv1.Volume{Meta: store.NewMeta("p/a/data")})
			w.service("a", 2, container(mounts("p/a/data")))
			w.service("b", 2, container(mounts("p/a/data")))
		}, "a: n1×2; b: n1×2"},
		{"data in two places", func(w *world) {
			two(w)
			w.put(&gantryv1.Volume{Meta: store.NewMeta("p/a/x"), Node: "n1"}, &gantryv1.Volume{Meta: store.NewMeta("p/a/y"), Node: "n2"})
			w.service("db", 1, container(mounts("p/a/x", "p/a/y")))
		}, "db: -×1"},
		{"beside those whose network is shared, slot by slot", func(w *world) {
			two(w)
			w.service("side", 2, container(func(c *gantryv1.ContainerSpec) {
				c.Network = &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_SERVICE, Target: "web"}
			}))
			w.service("web", 2)
		}, "side: n1×1 n2×1; web: n1×1 n2×1"},
		{"nobody to be beside", func(w *world) {
			two(w)
			w.service("side", 1, container(func(c *gantryv1.ContainerSpec) { c.PidMode = "service:web" }))
		}, "side: -×1"},
		{"the more important first", func(w *world) {
			w.node("n1")
			w.service("low", 2, memory(4*gib), priority(1))
			w.service("high", 1, memory(4*gib), priority(2))
		}, "high: n1×1; low: -×1 n1×1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			test.world(w)
			w.settle(t)
			if got := w.where(); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func mounts(volumes ...string) func(*gantryv1.ContainerSpec) {
	return func(c *gantryv1.ContainerSpec) {
		for _, v := range volumes {
			c.Mounts = append(c.Mounts, &gantryv1.Mount{Type: gantryv1.Mount_TYPE_VOLUME, Source: v, Target: "/" + v})
		}
	}
}

func TestSlotsOfSharedNetworks(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.node("n2")
	w.service("web", 2)
	w.service("side", 2, container(func(c *gantryv1.ContainerSpec) {
		c.Network = &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_SERVICE, Target: "web"}
	}))
	w.settle(t)
	at := map[string]string{}
	for _, i := range w.instances() {
		at[fmt.Sprint(i.Service, i.Slot)] = i.Node
	}
	if at["web1"] == at["web2"] || at["side1"] != at["web1"] || at["side2"] != at["web2"] {
		t.Errorf("%v", at)
	}
}

func TestRoomThatComesIsUsed(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.service("web", 3, memory(4*gib))
	w.settle(t)
	if got := w.where(); got != "web: -×1 n1×2" {
		t.Fatal(got)
	}
	i := w.get("i0001")
	i.Desired = removed
	w.put(i)
	w.settle(t)
	if got := w.where(); got != "web: (n1)×1 -×1 n1×1" {
		t.Fatalf("%s: what is leaving still takes its room", got)
	}
	w.leave()
	w.settle(t)
	if got := w.where(); got != "web: n1×2" {
		t.Fatal(got)
	}
	w.service("more", 1, memory(4*gib))
	w.settle(t)
	w.node("n2")
	w.settle(t)
	if got := w.where(); got != "more: n2×1; web: n1×2" {
		t.Fatal(got)
	}
	w.service("job", 2, memory(8*gib))
	w.settle(t)
	done := w.get("i0002")
	done.Outcome = "succeeded"
	w.put(done)
	other := w.get("i0003")
	other.Outcome = "failed"
	w.put(other)
	w.settle(t)
	if got := w.where(); !strings.Contains(got, "job: -×1 n1×1") {
		t.Fatalf("%s: what has ended takes no room", got)
	}
}

// TestHeartbeatsAreNoRoom has a node be heard of again with nothing new, and then with a device.
func TestHeartbeatsAreNoRoom(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.service("ml", 1, container(func(c *gantryv1.ContainerSpec) { c.Resources.NamedDevices = map[string]int32{"gpu": 1} }))
	w.settle(t)
	before := w.planner.version
	st := proto.Clone(w.objects["*gantryv1.NodeStatus/n1"]).(*gantryv1.NodeStatus)
	st.LastSeen, st.Clock = timestamppb.Now(), timestamppb.Now()
	w.put(st)
	if w.planner.version != before {
		t.Error("a heartbeat has all who wait tried again")
	}
	st = proto.Clone(st).(*gantryv1.NodeStatus)
	st.Devices = map[string]int32{"gpu": 1}
	w.put(st)
	w.settle(t)
	if got := w.where(); got != "ml: n1×1" {
		t.Error(got)
	}
}

func TestPreemption(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.node("n2")
	w.service("low", 2, memory(4*gib), priority(1))
	w.service("lower", 2, memory(4*gib))
	w.settle(t)
	w.service("equal", 1, memory(gib), priority(0))
	w.settle(t)
	if got := w.where(); got != "equal: -×1; low: n1×1 n2×1; lower: n1×1 n2×1" {
		t.Fatal(got)
	}
	w.service("high", 1, memory(8*gib), priority(9))
	w.settle(t)
	if got := w.where(); got != "equal: -×1; high: -×1; low: (n1)×1 n2×1; lower: (n1)×1 n2×1" {
		t.Fatal(got)
	}
	w.leave()
	w.instance("low", 1) // as the rollout does
	w.settle(t)
	if got := w.where(); got != "equal: -×1; high: n1×1; low: -×1 n2×1; lower: (n2)×1" {
		t.Fatal(got)
	}
	w.leave()
	w.settle(t)
	if got := w.where(); got != "equal: -×1; high: n1×1; low: n2×2" {
		t.Fatal(got)
	}
}

// TestPreemptionKeepsWhatItFreed lets those that make room leave one after the other.
func TestPreemptionKeepsWhatItFreed(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.service("low", 2, memory(4*gib))
	w.settle(t)
	w.service("high", 1, memory(8*gib), priority(1))
	w.settle(t)
	for range 2 {
		for _, i := range w.instances() {
			if i.Desired == removed {
				w.remove(i)
				w.instance("low", i.Slot)
				break
			}
		}
		w.settle(t)
	}
	if got := w.where(); got != "high: n1×1; low: -×2" {
		t.Fatal(got)
	}
}

// release makes the next release of a service and the instance of a slot that replaces the one there.
func (w *world) release(name string, slot int32) {
	s := proto.Clone(w.objects["*gantryv1.Service/p/a/"+name]).(*gantryv1.Service)
	s.Release = 2
	w.put(s, &gantryv1.Release{Meta: store.NewMeta("p/a/" + name + "/00000002"), Service: "p/a/" + name, Number: 2, Spec: s.Spec})
	w.made++
	w.put(&gantryv1.Instance{
		Meta: store.NewMeta(fmt.Sprintf("i%04d", w.made)), Environment: "p", App: "a", Service: name, Slot: slot, Release: 2, Desired: running,
	})
}

func TestAReplacementTakesTheRoomOfWhatItReplaces(t *testing.T) {
	order := func(order, strategy string) func(*gantryv1.ServiceSpec) {
		return func(s *gantryv1.ServiceSpec) { s.Update = &gantryv1.UpdateConfig{Order: order, Strategy: strategy} }
	}
	for _, test := range []struct {
		name    string
		change  []func(*gantryv1.ServiceSpec)
		between string
		after   string
	}{
		{"room for both", []func(*gantryv1.ServiceSpec){memory(4 * gib)}, "db: n1×2", "db: n1×2"},
		{"no room for both", []func(*gantryv1.ServiceSpec){memory(5 * gib)}, "db: (n1)×1 -×1", "db: n1×1"},
		{"one per node", []func(*gantryv1.ServiceSpec){rules(func(p *gantryv1.Placement) { p.MaxReplicasPerNode = 1 })}, "db: (n1)×1 n1×1", "db: n1×1"},
		{"start-first is asked for", []func(*gantryv1.ServiceSpec){memory(5 * gib), order("start-first", "")}, "db: -×1 n1×1", "db: -×1 n1×1"},
		{"the old set is kept", []func(*gantryv1.ServiceSpec){memory(5 * gib), order("", "blue-green")}, "db: -×1 n1×1", "db: -×1 n1×1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			w.node("n1")
			w.service("db", 1, test.change...)
			w.settle(t)
			w.release("db", 1)
			w.settle(t)
			if got := w.where(); got != test.between {
				t.Fatalf("got %s, want %s", got, test.between)
			}
			w.service("thief", 1, memory(5*gib)) // must not have the room that is being made
			w.settle(t)
			w.leave()
			w.settle(t)
			if got, _, _ := strings.Cut(w.where(), ";"); got != test.after {
				t.Fatalf("got %s, want %s", got, test.after)
			}
		})
	}
}

func TestWhatWasPlacedByOthersPinsItsVolumes(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.node("n2")
	w.put(&gantryv1.Volume{Meta: store.NewMeta("p/data")}, &gantryv1.Volume{Meta: store.NewMeta("p/a/logs")})
	w.put(&gantryv1.Instance{Meta: store.NewMeta("run"), Environment: "p", Service: "shell", Desired: running, Node: "n2",
		Spec: &gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "p/data"}}}})
	w.service("agent", 0, container(mounts("p/a/logs")), func(s *gantryv1.ServiceSpec) { s.Mode = "global" })
	w.put(&gantryv1.Instance{Meta: store.NewMeta("agent1"), Environment: "p", App: "a", Service: "agent", Slot: 1, Release: 1, Node: "n1", Desired: running})
	w.settle(t)
	data := w.objects["*gantryv1.Volume/p/data"].(*gantryv1.Volume)
	logs := w.objects["*gantryv1.Volume/p/a/logs"].(*gantryv1.Volume)
	if data.Node != "n2" || logs.Node != "" {
		t.Fatalf("%v %v", data, logs)
	}
}

func TestRebalance(t *testing.T) {
	rack2 := labelled("rack", "r2")
	for name, c := range map[string]struct {
		before, after func(*world)
		moves         int
		want          string
	}{
		"a node comes": {
			func(*world) {}, func(w *world) { w.node("n2", rack2) }, 2, "still: n1×4; web: n1×3 n2×2",
		},
		"a node is activated": {
			func(w *world) { w.node("n2", rack2, drained) }, func(w *world) { w.node("n2", rack2) }, 2, "still: n1×4; web: n1×3 n2×2",
		},
		"a node comes that is drained": {
			func(*world) {}, func(w *world) { w.node("n2", rack2, drained) }, 0, "still: n1×4; web: n1×5",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.node("n1", labelled("rack", "r1"))
			c.before(w)
			w.service("web", 5, rules(func(p *gantryv1.Placement) { p.Rebalance, p.Preferences = true, []string{"node.labels.rack"} }))
			w.service("still", 4)
			w.settle(t)
			w.rebalance(t) // of what has come until now
			c.after(w)
			if moves, got := w.rebalance(t), w.where(); got != c.want || moves != c.moves {
				t.Errorf("after %d moves: %s", moves, got)
			}
		})
	}
}

// TestAnotherPlannerGoesOnMoving: what has come before a planner was made, as after a failed write, is evened out all the same.
func TestAnotherPlannerGoesOnMoving(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.service("web", 4, rules(func(p *gantryv1.Placement) { p.Rebalance = true }))
	w.settle(t)
	w.node("n2")
	w.planner = newPlanner(w.reader())
	if moves, got := w.rebalance(t), w.where(); got != "web: n1×2 n2×2" || moves != 2 {
		t.Errorf("after %d moves: %s", moves, got)
	}
}

func drained(n *gantryv1.Node, _ *gantryv1.NodeStatus) { n.Availability = "drain" }

// rebalance has all instances become ready and moves what the planner says, one at a time, until it asks no more.
func (w *world) rebalance(t *testing.T) (moves int) {
	t.Helper()
	now := time.Unix(1_800_000_000, 0).Add(time.Duration(len(w.objects)) * time.Hour)
	for range 100 {
		for _, i := range w.instances() {
			w.put(&gantryv1.InstanceStatus{Meta: store.NewMeta(i.Meta.Key), Phase: gantryv1.InstanceStatus_PHASE_RUNNING})
		}
		evict, again := w.planner.rebalance(w.reader(), now)
		if len(evict) > 1 {
			t.Fatalf("%d at a time", len(evict))
		}
		for _, e := range evict {
			moves++
			i := w.get(e.instance)
			i.Desired = removed
			w.put(i)
			if evict, _ := w.planner.rebalance(w.reader(), now.Add(lookAgain)); len(evict) != 0 {
				t.Fatal("another moves before the first has come up")
			}
			w.leave()
			w.instance(i.Service, i.Slot)
			w.settle(t)
		}
		if again.IsZero() {
			return moves
		}
		now = now.Add(2 * lookAgain)
	}
	t.Fatal("it does not come to an end")
	return moves
}

func TestGlobalAndSingleInstancesAreNotSentAway(t *testing.T) {
	w := newWorld()
	w.node("n1")
	w.service("agent", 1, memory(4*gib), func(s *gantryv1.ServiceSpec) { s.Mode = "global" })
	w.put(&gantryv1.Instance{Meta: store.NewMeta("run"), Environment: "p", Service: "shell", Desired: running,
		Spec: &gantryv1.ContainerSpec{Resources: &gantryv1.Resources{MemoryReservation: 4 * gib}}})
	w.settle(t)
	w.service("high", 1, memory(4*gib), priority(5))
	w.settle(t)
	if got := w.where(); got != "agent: n1×1; high: -×1; shell: n1×1" {
		t.Fatal(got)
	}
}

func TestThoseWhoWaitAreToldWhy(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w := newWorld()
	w.node("n1")
	w.node("n2", func(n *gantryv1.Node, _ *gantryv1.NodeStatus) { n.Availability = "drain" })
	w.node("n3")
	w.service("other", 2, memory(2*gib))
	w.service("db", 1, memory(7*gib))
	w.settle(t)
	put, gone, _ := w.planner.say(now)
	const want = "no node fits: 2 lack memory (needs 7 GiB, most free 6 GiB), 1 is drained"
	if len(put) != 1 || len(gone) != 0 || put[0].(*gantryv1.InstanceStatus).Error != want || put[0].(*gantryv1.InstanceStatus).Hint != "gantry explain db" {
		t.Fatalf("%v %v", put, gone)
	}
	if put, gone, again := w.planner.say(now); len(put)+len(gone) > 0 || !again.IsZero() {
		t.Fatalf("said again: %v %v %v", put, gone, again)
	}
	w.node("n3", func(_ *gantryv1.Node, st *gantryv1.NodeStatus) { st.State = "down" })
	w.settle(t)
	if put, _, again := w.planner.say(now.Add(time.Millisecond)); len(put) > 0 || !again.Equal(now.Add(sayAgain)) {
		t.Fatalf("too soon: %v %v", put, again)
	}
	put, _, _ = w.planner.say(now.Add(sayAgain))
	if len(put) != 1 || !strings.Contains(put[0].(*gantryv1.InstanceStatus).Error, "1 is down") {
		t.Fatalf("%v", put)
	}
	w.node("n4")
	w.settle(t)
	if put, gone, _ := w.planner.say(now.Add(2 * sayAgain)); len(put) != 0 || len(gone) != 1 {
		t.Fatalf("after it was placed: %v %v", put, gone)
	}
}

// TestRandomWorlds lets services, machines and loads come and go and checks after every plan that no machine is over its
// capacity or against its rules, and that nothing waits that would fit.
func TestRandomWorlds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		names := []string{"a", "b", "c", "d"}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1:
				w.randomNode(t)
			case 2, 3, 4:
				w.randomService(t, rapid.SampledFrom(names).Draw(t, "name"))
			case 5, 6:
				if all := w.instances(); len(all) > 0 {
					i := proto.Clone(rapid.SampledFrom(all).Draw(t, "goes")).(*gantryv1.Instance)
					i.Desired = removed
					w.put(i)
				}
			case 7:
				w.leave()
			default:
				w.carry()
			}
			w.check(t)
		}
		w.settle(t)
		w.check(t)
		w.nothingWaitsInVain(t)
		fresh := newPlanner(w.reader())
		for id, m := range stateOf(w.planner) {
			if got := stateOf(fresh)[id]; got != m && len(w.planner.held) == 0 {
				t.Fatalf("node %s: followed %s, read %s", id, m, got)
			}
		}
	})
}

func stateOf(p *planner) map[string]string {
	out := map[string]string{}
	for _, m := range p.state.Machines() {
		out[m.ID()] = fmt.Sprintf("%d %d %d %d %v %v %v", m.Load.CPU, m.Load.Memory, m.Load.Instances, m.Load.Addresses, m.Load.Ports, m.Services, len(m.Here))
	}
	return out
}

func (w *world) randomNode(t *rapid.T) {
	w.node(rapid.SampledFrom([]string{"n1", "n2", "n3", "n4"}).Draw(t, "node"), func(n *gantryv1.Node, st *gantryv1.NodeStatus) {
		n.Meta.Labels["rack"] = rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "rack")
		n.Availability = rapid.SampledFrom([]string{"active", "active", "active", "drain"}).Draw(t, "availability")
		st.State = rapid.SampledFrom([]string{"ready", "ready", "ready", "down"}).Draw(t, "state")
	})
}

func (w *world) randomService(t *rapid.T, name string) {
	for _, i := range w.instances() {
		if i.Service == name {
			return // a release is not changed
		}
	}
	w.service(name, rapid.IntRange(1, 4).Draw(t, "replicas"), func(s *gantryv1.ServiceSpec) {
		s.Priority = rapid.Int32Range(0, 2).Draw(t, "priority")
		s.Container.Resources.MemoryReservation = rapid.Int64Range(0, 5).Draw(t, "memory") * gib
		if rapid.Bool().Draw(t, "ported") {
			s.Container.Ports = []*gantryv1.PortPublish{{HostPort: 80, Mode: "host"}}
		}
		p := s.Placement
		p.MaxReplicasPerNode = rapid.Int32Range(0, 2).Draw(t, "most")
		if rapid.Bool().Draw(t, "constrained") {
			p.Constraints = []string{"node.labels.rack == r1"}
		}
		if rapid.Bool().Draw(t, "preferring") {
			p.Preferences = []string{"node.labels.rack"}
		}
		if rapid.Bool().Draw(t, "packed") {
			p.Strategy = "binpack"
		}
		if rapid.Bool().Draw(t, "apart") {
			p.AntiAffinity = []string{rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "from")}
		}
	})
}

// check holds the machines against what was placed while they could take it.
func (w *world) check(t *rapid.T) {
	r := w.reader()
	for _, n := range store.List[*gantryv1.Node](r, "") {
		st, _ := store.Get[*gantryv1.NodeStatus](r, n.Meta.Key)
		memory, ports, services := int64(0), 0, map[string]int32{}
		for _, i := range w.instances() {
			if i.Node != n.Meta.Key {
				continue
			}
			rel, _ := store.Get[*gantryv1.Release](r, "p/a/"+i.Service+"/00000001")
			memory += rel.Spec.Container.Resources.MemoryReservation
			ports += len(rel.Spec.Container.Ports)
			if i.Desired != removed {
				services[i.Service]++
			}
		}
		if memory > st.Memory || ports > 1 {
			t.Fatalf("node %s: %d of %d bytes, port taken %d times: %s", n.Meta.Key, memory, st.Memory, ports, w.where())
		}
		for name, count := range services {
			s, _ := store.Get[*gantryv1.Service](r, "p/a/"+name)
			p := s.Spec.Placement
			if p.MaxReplicasPerNode > 0 && count > p.MaxReplicasPerNode {
				t.Fatalf("node %s has %d of %s", n.Meta.Key, count, name)
			}
		}
	}
}

// nothingWaitsInVain tries each waiting instance on each machine by the words of an explanation.
func (w *world) nothingWaitsInVain(t *rapid.T) {
	s := placement.NewState(w.reader())
	for _, i := range w.instances() {
		if i.Node != "" || i.Desired == removed || len(w.planner.held) > 0 {
			continue
		}
		if why := s.Why(s.Instance(i.Meta.Key)); why == "" {
			t.Fatalf("%s.%d waits although it fits: %s", i.Service, i.Slot, w.where())
		}
	}
}
