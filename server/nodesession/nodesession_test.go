package nodesession_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/agent/nodelink"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/server/nodesession"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
	"github.com/gantryd/gantry/store/storetest"
)

// noSecrets opens nothing; the tests have none.
type noSecrets struct{}

func (noSecrets) Open(string, []byte) ([]byte, error) {
	return nil, fault.New(fault.NotFound, "no secrets")
}

// world is a hub on a real store, behind a real listener.
type world struct {
	testing.TB
	store *store.Store
	hub   *nodesession.Hub
	url   string
	http  *http.Client
	lead  func() (stop func())
}

func newWorld(t testing.TB) *world {
	w := &world{TB: t, store: storetest.New(t)}
	w.hub = nodesession.New(w.store, nodesession.Options{
		Secrets: noSecrets{}, Leader: func() string { return "192.0.2.7:7450" }, Logger: slog.New(slog.DiscardHandler),
	})
	_, h := gantryv1connect.NewNodeSessionServiceHandler(w.hub, append(server.HandlerOptions(), nodesession.HandlerOption())...)
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.CloseClientConnections)
	w.url, w.http = s.URL, s.Client()
	w.lead = func() func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := w.hub.Run(ctx); err != nil {
				t.Errorf("the hub ended: %v", err)
			}
		}()
		return func() { cancel(); <-done }
	}
	return w
}

func (w *world) put(objects ...store.Object) {
	w.Helper()
	err := w.store.Update(w.Context(), func(tx *store.Tx) error {
		for _, o := range objects {
			store.Put(tx, proto.Clone(o).(store.Object))
		}
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
}

func machine(id string) *gantryv1.Node { return &gantryv1.Node{Meta: store.NewMeta(id), Name: id} }

func spec(network string, ports ...*gantryv1.PortPublish) *gantryv1.ServiceSpec {
	return &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{
		Ports: ports, Network: &gantryv1.NetworkMode{Attachments: []*gantryv1.NetworkAttachment{{Network: network}}},
	}}
}

// service is a service with its release and network.
func service(app, name, network string, ports ...*gantryv1.PortPublish) []store.Object {
	key, s := "p/"+app+"/"+name, spec(network, ports...)
	return []store.Object{
		&gantryv1.Service{Meta: store.NewMeta(key), Environment: "p", App: app, Name: name, Spec: s, Release: 1, Replicas: 1},
		&gantryv1.Release{Meta: store.NewMeta(progress.ReleaseKey(key, 1)), Service: key, Number: 1, Spec: s},
		&gantryv1.Network{Meta: store.NewMeta(network), Number: 1},
	}
}

// needing adds a dependency to a service's release.
func needing(objects []store.Object, on string) []store.Object {
	s := objects[1].(*gantryv1.Release).Spec
	s.DependsOn = append(s.DependsOn, &gantryv1.Dependency{Service: on, Required: true})
	return objects
}

func instance(id, app, svc, node string) *gantryv1.Instance {
	return &gantryv1.Instance{
		Meta: store.NewMeta(id), Environment: "p", App: app, Service: svc, Slot: 1, Release: 1, Node: node,
		Desired: gantryv1.Instance_DESIRED_RUNNING,
	}
}

// member is a node as the tests move it: it keeps what it was told, as an agent does.
type member struct {
	*world
	id     string
	box    *nodelink.Outbox
	told   chan *gantryv1.NodeUpdate
	known  map[string]*gantryv1.ServiceEndpoints
	nets   map[string]bool
	here   map[string]*gantryv1.Assignment
	nodes  map[string]bool
	leave  context.CancelFunc
	begins []*gantryv1.InstanceStatus
}

// join opens a session that lasts until leave or the test's end.
func (w *world) join(id string, statuses ...*gantryv1.InstanceStatus) *member {
	ctx, cancel := context.WithCancel(w.Context())
	m := &member{
		world: w, id: id, box: nodelink.NewOutbox(), told: make(chan *gantryv1.NodeUpdate, 10_000), leave: cancel, begins: statuses,
		known: map[string]*gantryv1.ServiceEndpoints{}, nets: map[string]bool{}, here: map[string]*gantryv1.Assignment{}, nodes: map[string]bool{},
	}
	l := nodelink.New(nodelink.Options{
		Server: gantryv1connect.NewNodeSessionServiceClient(w.http, w.url), Outbox: m.box, Logger: slog.New(slog.DiscardHandler),
		Hello: func() *gantryv1.NodeReport {
			return &gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: id}, Status: m.status(), Statuses: m.begins}
		},
		Status: m.status,
		Take:   func(_ context.Context, u *gantryv1.NodeUpdate) { m.told <- u },
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	w.Cleanup(func() { cancel(); <-done })
	return m
}

func (m *member) status() *gantryv1.NodeStatus {
	return &gantryv1.NodeStatus{Meta: store.NewMeta(m.id), NanoCpus: 4e9, Clock: timestamppb.Now()}
}

func (m *member) runs(id, address string) {
	m.box.Status(running(id, address))
}

func running(id, address string) *gantryv1.InstanceStatus {
	return &gantryv1.InstanceStatus{Meta: store.NewMeta(id), Phase: gantryv1.InstanceStatus_PHASE_RUNNING, Address: address}
}

// until takes updates until the condition holds.
func (m *member) until(what string, met func() bool) {
	m.Helper()
	for !met() {
		select {
		case u := <-m.told:
			m.learn(u)
		case <-time.After(20 * time.Second):
			m.Fatalf("node %s never knew %s; it knows %v, %v and %v", m.id, what, m.known, m.nets, m.here)
		}
	}
}

func (m *member) learn(u *gantryv1.NodeUpdate) {
	if u.Full {
		clear(m.known)
		clear(m.nets)
		clear(m.here)
		clear(m.nodes)
	}
	for _, e := range u.Endpoints {
		m.known[e.Service] = e
	}
	for _, key := range u.RemovedEndpoints {
		delete(m.known, key)
	}
	for _, n := range u.Networks {
		m.nets[n.Meta.Key] = true
	}
	for _, key := range u.RemovedNetworks {
		delete(m.nets, key)
	}
	for _, as := range u.Assignments {
		m.here[as.Instance.Meta.Key] = as
	}
	for _, id := range u.Unassigned {
		delete(m.here, id)
	}
	for _, n := range u.Nodes {
		m.nodes[n.Meta.Key] = true
	}
	for _, key := range u.RemovedNodes {
		delete(m.nodes, key)
	}
}

func (m *member) ready(service string) int {
	n := 0
	for _, e := range m.known[service].GetEndpoints() {
		if e.Ready {
			n++
		}
	}
	return n
}

// state waits for what the server thinks of the node.
func (w *world) state(node, want string) {
	w.Helper()
	w.watch("node "+node+" "+want, func(r *store.ReadTx) bool {
		st, _ := store.Get[*gantryv1.NodeStatus](r, node)
		return st.GetState() == want
	})
}

func (w *world) watch(what string, met func(*store.ReadTx) bool) {
	w.Helper()
	sub, err := w.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		w.Fatal(err)
	}
	defer sub.Close()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	for !met(w.store.Snapshot()) {
		if _, err := sub.Next(ctx); err != nil {
			w.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

func TestNodesHearOfWhatTheirInstancesMaySee(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	w.put(machine("n1"), machine("n2"))
	w.put(needing(service("a", "web", "p/a/default"), "db")...)
	w.put(service("a", "db", "p/a/default")...)
	w.put(service("b", "other", "p/b/default")...)
	one, two := w.join("n1"), w.join("n2")
	w.put(instance("i1", "a", "web", "n1"), instance("i2", "a", "db", "n2"), instance("i3", "b", "other", "n2"))
	two.until("its instances", func() bool { return len(two.here) == 2 })
	two.runs("i2", "10.64.2.2")
	two.runs("i3", "10.64.2.3")
	one.until("its own service and the other of the app", func() bool { return one.ready("p/a/db") == 1 && one.known["p/a/web"] != nil })
	if got := one.here["i1"].DependsOn; !slices.Equal(got, []string{"db"}) {
		t.Errorf("web depends on %v", got)
	}
	if one.known["p/b/other"] != nil || one.nets["p/b/default"] || !one.nets["p/a/default"] || !one.nodes["n2"] {
		t.Fatalf("n1 knows %v and %v", one.known, one.nets)
	}
	// A published port is answered for on every node.
	w.put(service("b", "other", "p/b/default", &gantryv1.PortPublish{ContainerPort: 80})...)
	one.until("a service with ports", func() bool { return one.ready("p/b/other") == 1 && one.nets["p/b/default"] })
	w.put(service("b", "other", "p/b/default")...)
	one.until("no service of others without ports", func() bool { return one.known["p/b/other"] == nil && !one.nets["p/b/default"] })
}

func TestManyEndpointsArriveWhole(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	w.put(machine("n1"), machine("n2"))
	w.put(service("a", "web", "p/a/default")...)
	const many = 1203
	var all []store.Object
	for n := range many {
		all = append(all, instance(fmt.Sprintf("x%d", n), "a", "web", "n1"))
	}
	w.put(all...)
	one := w.join("n1")
	one.until("all instances", func() bool { return len(one.here) == many })
	for n := range many {
		one.runs(fmt.Sprintf("x%d", n), fmt.Sprintf("10.64.%d.%d", n/250, n%250))
	}
	one.until("all endpoints", func() bool { return one.ready("p/a/web") == many })
	w.put(instance("y", "a", "web", "n2"))
	late := w.join("n2") // it reads the log from its beginning
	late.until("all endpoints", func() bool { return late.ready("p/a/web") == many })
	err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		for n := range many - 1 {
			store.Delete[*gantryv1.Instance](tx, fmt.Sprintf("x%d", n))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	late.until("one endpoint", func() bool { return len(late.known["p/a/web"].GetEndpoints()) == 1 })
	one.until("one instance", func() bool { return len(one.here) == 1 && len(one.known["p/a/web"].Endpoints) == 1 })
	w.watch("the statuses of what is gone to go", func(r *store.ReadTx) bool {
		return len(store.List[*gantryv1.InstanceStatus](r, "")) == 1
	})
}

func TestWeightsDivideTraffic(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	w.put(machine("n1"))
	objects := service("a", "web", "p/a/default")
	svc := objects[0].(*gantryv1.Service)
	svc.Release, svc.Weights = 2, map[int64]int32{2: 20}
	second := proto.Clone(objects[1]).(*gantryv1.Release)
	second.Meta, second.Number = store.NewMeta(progress.ReleaseKey("p/a/web", 2)), 2
	newer := instance("i3", "a", "web", "n1")
	newer.Release = 2
	w.put(append(objects, second, instance("i1", "a", "web", "n1"), instance("i2", "a", "web", "n1"), newer)...)
	one := w.join("n1")
	one.until("its instances", func() bool { return len(one.here) == 3 })
	for n, id := range []string{"i1", "i2", "i3"} {
		one.runs(id, fmt.Sprintf("10.64.0.%d", n+2))
	}
	weights := func() map[string]int32 {
		out := map[string]int32{}
		for _, e := range one.known["p/a/web"].GetEndpoints() {
			out[e.Instance] = e.Weight
		}
		return out
	}
	one.until("weights", func() bool { got := weights(); return got["i1"] == 4000 && got["i2"] == 4000 && got["i3"] == 2000 })
	svc.Weights = map[int64]int32{2: 0}
	w.put(svc)
	one.until("that the new release gets nothing", func() bool { return weights()["i3"] == -1 && one.ready("p/a/web") == 2 })
	svc.Weights = map[int64]int32{2: 100}
	w.put(svc)
	one.until("that the old release gets nothing", func() bool {
		got := weights()
		return got["i1"] == -1 && got["i2"] == -1 && one.ready("p/a/web") == 1
	})
	svc.Weights = nil
	w.put(svc)
	one.until("no weights", func() bool { return weights()["i3"] == 0 && one.ready("p/a/web") == 3 })
}

func TestASilentNodeIsSuspectThenDownAndReadyAgain(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	w.put(&gantryv1.Cluster{Meta: store.NewMeta("cluster"), SuspectAfter: durationpb.New(300 * time.Millisecond), DownAfter: durationpb.New(900 * time.Millisecond)})
	w.put(machine("n1"), machine("n2"))
	w.put(service("a", "web", "p/a/default")...)
	w.put(instance("i1", "a", "web", "n1"), instance("i2", "a", "web", "n2"))
	w.state("n2", "down") // it never came
	sub, err := w.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	one := w.join("n1")
	one.until("its instance", func() bool { return one.here["i1"] != nil })
	one.runs("i1", "10.64.1.2")
	w.watch("the report", func(r *store.ReadTx) bool { _, ok := store.Get[*gantryv1.InstanceStatus](r, "i1"); return ok })
	one.leave()
	w.state("n1", "down")
	st, _ := store.Get[*gantryv1.NodeStatus](w.store.Snapshot(), "n1")
	if off := st.Clock.AsTime().Sub(st.LastSeen.AsTime()); off.Abs() > 500*time.Millisecond {
		t.Fatalf("its silence is taken for a clock that is off by %s", off)
	}
	// The events told every state in turn, and no heartbeat.
	var states []string
	events, err := sub.Take()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if st, ok := e.New.(*gantryv1.NodeStatus); ok && st.Meta.Key == "n1" {
			states = append(states, st.State)
		}
	}
	if len(states) < 3 || states[0] == "suspect" || states[len(states)-2] != "suspect" {
		t.Fatalf("n1 was %v", states)
	}
	two := w.join("n2")
	two.until("that nobody is sent to a node that is down", func() bool {
		e := two.known["p/a/web"]
		return len(e.GetEndpoints()) == 1 && !e.Endpoints[0].Ready
	})
	again := w.join("n1", running("i1", "10.64.1.2"))
	w.state("n1", "ready")
	two.until("that it is back", func() bool { return two.ready("p/a/web") == 1 })
	again.until("its instance", func() bool { return again.here["i1"] != nil })
}

// TestWhatANodeHasStaysWhereItWasUntilItSays has a server lead that has not heard all nodes: whoever knows the addresses of the
// others keeps them until their nodes say, or are down.
func TestWhatANodeHasStaysWhereItWasUntilItSays(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	patience := func(down time.Duration) {
		w.put(&gantryv1.Cluster{Meta: store.NewMeta("cluster"), SuspectAfter: durationpb.New(down / 2), DownAfter: durationpb.New(down)})
	}
	patience(time.Hour)
	w.put(machine("n1"), machine("n2"), machine("n3"))
	w.put(service("a", "web", "p/a/default")...)
	leaving := instance("i4", "a", "web", "n3")
	leaving.Desired = gantryv1.Instance_DESIRED_REMOVED
	w.put(instance("i1", "a", "web", "n1"), instance("i2", "a", "web", "n2"), instance("i3", "a", "web", "n3"), leaving)
	one := w.join("n1", running("i1", "10.64.1.2"))
	said := func() string {
		var out []string
		for _, e := range one.known["p/a/web"].GetEndpoints() {
			out = append(out, fmt.Sprintf("%s %q %t; ", e.Instance, e.Address, e.Ready))
		}
		slices.Sort(out)
		return strings.Join(out, "")
	}
	one.until("all that may serve", func() bool { return said() == `i1 "10.64.1.2" true; i2 "" true; i3 "" true; i4 "" false; ` })
	w.join("n2")
	one.until("that n2 has none", func() bool { return said() == `i1 "10.64.1.2" true; i3 "" true; i4 "" false; ` })
	patience(time.Second)
	one.until("that n3 is down", func() bool { return said() == `i1 "10.64.1.2" true; ` })
}

// webOnTwo has nodes called suspect soon and down never; web runs on n1, which has joined, and on n2, which has not, and db on n2
// alone. It returns n1 and what n2 runs.
func (w *world) webOnTwo() (one *member, two []*gantryv1.InstanceStatus) {
	w.put(&gantryv1.Cluster{Meta: store.NewMeta("cluster"), SuspectAfter: durationpb.New(500 * time.Millisecond), DownAfter: durationpb.New(time.Hour)})
	w.put(machine("n1"), machine("n2"))
	w.put(service("a", "web", "p/a/default")...)
	w.put(service("a", "db", "p/a/default")...)
	w.put(instance("i1", "a", "web", "n1"), instance("i2", "a", "web", "n2"), instance("i3", "a", "db", "n2"))
	return w.join("n1", running("i1", "10.64.1.2")), []*gantryv1.InstanceStatus{running("i2", "10.64.2.2"), running("i3", "10.64.2.3")}
}

// serves reports whether so many instances of web and of db get new connections, as the member knows it.
func (m *member) serves(web, db int) func() bool {
	return func() bool { return m.ready("p/a/web") == web && m.ready("p/a/db") == db }
}

func TestASuspectNodeGetsNothingNewWhileAnotherCanServe(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	one, two := w.webOnTwo()
	gone := w.join("n2", two...)
	one.until("both of web", one.serves(2, 1))
	gone.leave()
	one.until("one of web, and the only one of db", one.serves(1, 1))
	w.join("n2", two...)
	one.until("both again", one.serves(2, 1))
}

// TestANodeThatANewLeaderDoesNotHearGetsNothingNew as long as another can serve: it may have died with the leader before.
func TestANodeThatANewLeaderDoesNotHearGetsNothingNew(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	one, two := w.webOnTwo()
	one.until("one of web, and the only one of db", one.serves(1, 1))
	w.join("n2", two...)
	one.until("both", one.serves(2, 1))
}

// raw opens a session without nodelink, for what a well-behaved node does not do.
func (w *world) raw(node string) error {
	stream := gantryv1connect.NewNodeSessionServiceClient(w.http, w.url).Session(w.Context())
	_ = stream.Send(&gantryv1.NodeReport{
		Hello: &gantryv1.NodeHello{Node: node}, Status: &gantryv1.NodeStatus{Meta: store.NewMeta(node), Kernel: "raw"},
	}) // its error is what Receive says better
	for {
		if _, err := stream.Receive(); err != nil {
			return wire.Decode(err)
		}
	}
}

// rawSession returns when the session is there.
func (w *world) rawSession(node string) (ended <-chan error) {
	end := make(chan error, 1)
	go func() { end <- w.raw(node) }()
	w.watch("the session", func(r *store.ReadTx) bool {
		st, _ := store.Get[*gantryv1.NodeStatus](r, node)
		return st.GetKernel() == "raw"
	})
	return end
}

func TestOnlyTheLeaderHasSessions(t *testing.T) {
	w := newWorld(t)
	w.put(machine("n1"))
	err := w.raw("n1")
	if !fault.Is(err, fault.Unavailable) || fault.HintOf(err) != "192.0.2.7:7450" {
		t.Fatalf("before it leads: %v, hint %q", err, fault.HintOf(err))
	}
	stop := w.lead()
	one := w.join("n1")
	w.state("n1", "ready")
	one.leave()
	ended := w.rawSession("n1")
	stop()
	if err := <-ended; !fault.Is(err, fault.Unavailable) || fault.HintOf(err) != "192.0.2.7:7450" {
		t.Fatalf("after it led: %v", err)
	}
}

func TestARemovedNodeIsCutOff(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	w.put(machine("n1"))
	one := w.join("n1")
	w.state("n1", "ready")
	one.leave()
	ended := w.rawSession("n1")
	err := w.store.Update(t.Context(), func(tx *store.Tx) error { store.Delete[*gantryv1.Node](tx, "n1"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !fault.Is(err, fault.Denied) {
		t.Fatalf("the session of a removed node ended with %v", err)
	}
	if err := w.raw("n1"); !fault.Is(err, fault.Denied) {
		t.Fatalf("a removed node came back: %v", err)
	}
	w.watch("its status to go", func(r *store.ReadTx) bool { _, ok := store.Get[*gantryv1.NodeStatus](r, "n1"); return !ok })
}

func TestWhatANodeDoesNotHaveIsForgotten(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	w.put(machine("n1"))
	w.put(service("a", "web", "p/a/default")...)
	w.put(instance("i1", "a", "web", "n1"), instance("i2", "a", "web", "n1"))
	one := w.join("n1")
	one.until("its instances", func() bool { return len(one.here) == 2 })
	one.runs("i1", "10.64.1.2")
	one.runs("i2", "10.64.1.3")
	w.watch("both reports", func(r *store.ReadTx) bool { return len(store.List[*gantryv1.InstanceStatus](r, "")) == 2 })
	one.leave()
	leaving := instance("i2", "a", "web", "n1")
	leaving.Desired = gantryv1.Instance_DESIRED_REMOVED
	w.put(leaving)
	// The node comes back with nothing: one is to be made again, the other is gone.
	back := w.join("n1")
	back.until("the one that is left", func() bool { return len(back.here) == 1 && back.here["i1"] != nil })
	w.watch("the other to go", func(r *store.ReadTx) bool {
		_, there := store.Get[*gantryv1.Instance](r, "i2")
		return !there && len(store.List[*gantryv1.InstanceStatus](r, "")) == 0
	})
}

// TestANodeIsHeardWhileARemovalIsStored: the state may hold a change up for seconds, in which the node is neither silent nor behind.
func TestANodeIsHeardWhileARemovalIsStored(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	w.put(machine("n1"))
	w.put(service("a", "web", "p/a/default")...)
	w.put(instance("i1", "a", "web", "n1"), instance("i2", "a", "web", "n1"), instance("i3", "a", "web", "n1"))
	one := w.join("n1")
	one.until("its instances", func() bool { return len(one.here) == 3 })
	leaving := instance("i1", "a", "web", "n1")
	leaving.Desired = gantryv1.Instance_DESIRED_REMOVED
	w.put(leaving)
	one.until("that one is to go", func() bool { return one.here["i1"].Instance.Desired == gantryv1.Instance_DESIRED_REMOVED })
	stalled, resume, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- w.store.Update(t.Context(), func(*store.Tx) error {
			close(stalled)
			<-resume
			return nil
		})
	}()
	<-stalled
	one.box.Gone("i1")
	one.runs("i2", "10.64.1.2")
	w.watch("what came with the removal", func(r *store.ReadTx) bool { _, ok := store.Get[*gantryv1.InstanceStatus](r, "i2"); return ok })
	one.runs("i3", "10.64.1.3")
	w.watch("what came after the removal", func(r *store.ReadTx) bool { _, ok := store.Get[*gantryv1.InstanceStatus](r, "i3"); return ok })
	close(resume)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	w.watch("the removal", func(r *store.ReadTx) bool { _, ok := store.Get[*gantryv1.Instance](r, "i1"); return !ok })
	one.runs("i2", "10.64.1.9")
	w.watch("the same session", func(r *store.ReadTx) bool {
		st, _ := store.Get[*gantryv1.InstanceStatus](r, "i2")
		return st.GetAddress() == "10.64.1.9"
	})
	if n := w.hub.Sessions(); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// TestTheServerSaysAtOnceThatItHasTakenASession: before an update of everything, which takes its time.
func TestTheServerSaysAtOnceThatItHasTakenASession(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	w.put(machine("n1"))
	stream := gantryv1connect.NewNodeSessionServiceClient(w.http, w.url).Session(t.Context())
	_ = stream.Send(&gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: "n1"}}) // its error is what Receive says better
	first, err := stream.Receive()
	if err != nil || proto.Size(first) != 0 {
		t.Fatalf("the first update is %v (%v)", first, err)
	}
	if second, err := stream.Receive(); err != nil || !second.Full {
		t.Fatalf("the second update is %v (%v)", second, err)
	}
}
