package cluster_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
)

// rig is a cluster on loopback ports, with an authority of its own.
type rig struct {
	t     *testing.T
	ca    *identity.Authority
	roots []byte
	known sync.Map // names of servers to come
}

func newRig(t *testing.T) *rig {
	ca, roots, _, err := identity.NewAuthority("test")
	check(t, err)
	return &rig{t: t, ca: ca, roots: roots}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// options makes a machine with a certificate of the role.
func (r *rig) options(name string, role identity.Role) cluster.Options {
	r.t.Helper()
	dir := r.t.TempDir()
	key, request, err := identity.Request()
	check(r.t, err)
	cert, err := r.ca.Sign(request, name, role, "127.0.0.1", time.Hour)
	check(r.t, err)
	k, err := identity.NewKeeper(filepath.Join(dir, "id"), cert, key, r.roots)
	check(r.t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(r.t, err)
	url := "https://" + l.Addr().String()
	check(r.t, l.Close())
	run, err := os.MkdirTemp("", "gm") // short: it holds Unix sockets
	check(r.t, err)
	r.t.Cleanup(func() { _ = os.RemoveAll(run) })
	pair, roots := k.Files()
	return cluster.Options{
		Root: filepath.Join(dir, "etcd"), Run: run, Logger: slog.New(slog.DiscardHandler),
		Peers: &cluster.Peers{
			Name: name, Listen: url, Advertise: url, Pair: pair, Roots: roots, Hostname: identity.AnyServer,
			Known: func(machine string) bool { _, ok := r.known.Load(machine); return ok },
		},
	}
}

func (r *rig) start(o cluster.Options) *cluster.Member {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	m, err := cluster.Start(ctx, o)
	check(r.t, err)
	r.t.Cleanup(m.Stop)
	return m
}

// join starts another member and waits until it has its vote.
func (r *rig) join(by *cluster.Member, name string) (*cluster.Member, cluster.Options) {
	r.t.Helper()
	o := r.options(name, identity.Server)
	var id string
	r.known.Store(name, true)
	r.eventually("the member is added", func() (err error) {
		id, o.Initial, err = by.AddLearner(r.t.Context(), name, o.Peers.Advertise, false)
		return err
	})
	m := r.start(o)
	if m.ID() != id {
		r.t.Fatalf("the member is %s, not %s", m.ID(), id)
	}
	r.eventually("the member has its vote", func() error { return by.Promote(r.t.Context(), id) })
	return m, o
}

func (r *rig) eventually(what string, fn func() error) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("not in time: %s: %v", what, err)
		}
	}
}

func put(ctx context.Context, m *cluster.Member, key, value string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := m.Client().Put(ctx, key, value)
	return err
}

func read(t *testing.T, m *cluster.Member, key string) string {
	t.Helper()
	resp, err := m.Client().Get(t.Context(), key, clientv3.WithSerializable())
	check(t, err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func TestMembersComeAndGo(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	check(t, put(t.Context(), a, "k", "1"))
	b, ob := r.join(a, "b")
	if again, _, err := a.AddLearner(t.Context(), "b", ob.Peers.Advertise, false); err != nil || again != b.ID() {
		t.Errorf("asked twice for one place: %s, %v", again, err)
	}
	if got := read(t, b, "k"); got != "1" {
		t.Errorf("the new member has %q", got)
	}
	if got := a.Members(); len(got) != 2 || got[0].Learner || got[1].Learner {
		t.Errorf("members: %+v", got)
	}
	r.eventually("the lead is handed over", func() error { return a.HandOver(t.Context()) }) // to one that has just come
	r.eventually("the other leads", func() error {
		if b.Leader() != b.ID() {
			return fmt.Errorf("%s leads", b.Leader())
		}
		return nil
	})
	r.eventually("the first has left", func() error { return b.Remove(t.Context(), a.ID()) })
	select {
	case <-a.Stopped():
	case <-time.After(time.Minute):
		t.Error("a member that was removed goes on")
	}
	check(t, b.Remove(t.Context(), a.ID()))
	check(t, put(t.Context(), b, "k", "2"))
}

// TestMemberWithoutItsState has a voter lose its state and come back as another member. As the one that it was it would know
// nothing of what that has acknowledged, and raft would end it.
func TestMemberWithoutItsState(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	r.join(a, "b")
	c, oc := r.join(a, "c")
	for i := range 20 {
		check(t, put(t.Context(), a, "k", fmt.Sprint(i)))
	}
	was := c.ID()
	c.Stop()
	check(t, os.RemoveAll(oc.Root))
	var id string
	r.eventually("it is added anew", func() (err error) {
		id, oc.Initial, err = a.AddLearner(t.Context(), "c", oc.Peers.Advertise, true)
		return err
	})
	if again, _, err := a.AddLearner(t.Context(), "c", oc.Peers.Advertise, true); err != nil || again != id || id == was {
		t.Errorf("it was %s, is %s, and asked again %s, %v", was, id, again, err)
	}
	m := r.start(oc)
	r.eventually("it has its vote", func() error { return a.Promote(t.Context(), id) })
	if got := read(t, m, "k"); got != "19" {
		t.Errorf("it has %q", got)
	}
	if got := a.Members(); len(got) != 3 {
		t.Errorf("members: %+v", got)
	}
}

func TestOnlyServersArePeers(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	r.known.Store("n", true)
	for name, role := range map[string]identity.Role{"n": identity.Node, "stranger": identity.Server} {
		o := r.options(name, role)
		id, initial, err := a.AddLearner(t.Context(), name, o.Peers.Advertise, false)
		check(t, err)
		o.Initial = initial
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if m, err := cluster.Start(ctx, o); err == nil {
			m.Stop()
			t.Errorf("%s, with the certificate of a %s, became a member", name, role)
		}
		check(t, a.Remove(t.Context(), id))
	}
}

// dial is a connection to a peer port with the certificate of a machine.
func (r *rig) dial(to, as cluster.Options) net.Conn {
	r.t.Helper()
	pair, err := tls.LoadX509KeyPair(as.Peers.Pair, as.Peers.Pair)
	check(r.t, err)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(to.Peers.Advertise, "https://"), &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, // whom it asks is not what is tested
	})
	check(r.t, err)
	r.t.Cleanup(func() { _ = conn.Close() })
	check(r.t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return conn
}

// get is what a peer port answers to a machine.
func (r *rig) get(to, as cluster.Options, path string) *http.Response {
	r.t.Helper()
	conn := r.dial(to, as)
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path)
	check(r.t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	check(r.t, err)
	_ = resp.Body.Close()
	return resp
}

// TestFormerServersAreNoPeers: the certificate of a member that was removed is good, and opens nothing any more; what it has open
// is closed. The others, who start alone, are let in.
func TestFormerServersAreNoPeers(t *testing.T) {
	r := newRig(t)
	oa := r.options("a", identity.Server)
	a := r.start(oa)
	b, ob := r.join(a, "b")
	c, _ := r.join(a, "c")
	stolen := r.options("c", identity.Server) // what an old copy of its disk has
	r.known.Clear()                           // the state itself lists all three
	member := r.get(oa, stolen, "/members")
	if member.StatusCode != http.StatusOK {
		t.Fatalf("a member is answered %s", member.Status)
	}
	open := r.dial(oa, stolen) // a message that takes long
	_, err := fmt.Fprintf(open, "POST /raft HTTP/1.1\r\nHost: a\r\nX-Etcd-Cluster-ID: %s\r\nX-Server-Version: 3.7.0\r\n"+
		"X-Min-Cluster-Version: 3.0.0\r\nContent-Length: 100000\r\n\r\n", member.Header.Get("X-Etcd-Cluster-ID"))
	check(t, err)
	half := func() error { _, err := open.Write([]byte{0}); return err }
	check(t, open.SetDeadline(time.Now().Add(5*time.Minute)))
	r.eventually("one is removed", func() error {
		check(t, half()) // until then it is let in
		return a.Remove(t.Context(), c.ID())
	})
	select {
	case <-c.Stopped(): // the others have told it so, and nothing else
	case <-time.After(time.Minute):
		t.Error("a member that was removed goes on")
	}
	for _, o := range []cluster.Options{oa, ob} {
		r.eventually("it is refused", func() error {
			for _, path := range []string{"/members", "/raft", "/raft/probing", "/raft/stream/message/" + a.ID(), "/version"} {
				if got := r.get(o, stolen, path); got.StatusCode != http.StatusForbidden {
					return fmt.Errorf("%s of %s: %s", path, o.Peers.Name, got.Status)
				}
			}
			return nil
		})
	}
	r.eventually("its connection is closed", func() error {
		if err := half(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("what it says is read still: %v", err)
		}
		return nil
	})
	c.Stop()
	a.Stop()
	b.Stop()
	oa.Initial, ob.Initial = nil, nil
	again, err := cluster.Open(oa)
	check(t, err)
	t.Cleanup(again.Stop)
	if got := r.get(oa, stolen, "/members"); got.StatusCode != http.StatusForbidden {
		t.Errorf("a server that starts alone answers one that was removed: %s", got.Status)
	}
	if got := r.get(oa, ob, "/members"); got.StatusCode != http.StatusOK {
		t.Errorf("a server that starts alone answers another one: %s", got.Status)
	}
	second := r.start(ob)
	check(t, put(t.Context(), second, "k", "together"))
}

func TestLead(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	b, _ := r.join(a, "b")
	type reign struct {
		who   string
		epoch int64
		ended <-chan struct{}
	}
	reigns := make(chan reign, 10)
	for name, m := range map[string]*cluster.Member{"a": a, "b": b} {
		go func() {
			_ = m.Lead(t.Context(), name, func(ctx context.Context, epoch int64) error {
				reigns <- reign{name, epoch, ctx.Done()}
				<-ctx.Done()
				return nil
			})
		}()
	}
	first := <-reigns
	if first.who != "a" {
		t.Fatalf("%s leads", first.who)
	}
	r.eventually("the lead is handed over", func() error { return a.HandOver(t.Context()) }) // to one that has just come
	second := <-reigns
	if second.who != "b" || second.epoch <= first.epoch {
		t.Errorf("then %s leads with epoch %d after %d", second.who, second.epoch, first.epoch)
	}
	select {
	case <-first.ended:
	case <-time.After(time.Minute):
		t.Error("the first does not know that it leads no longer")
	}
}

// TestAnOvertakenEpochBeginsAgain has the epoch written while its leader leads: by a write that was made for a lead that had
// been lost, and came late. Its changes would all be refused, for as long as it leads.
func TestAnOvertakenEpochBeginsAgain(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	epochs := make(chan int64, 10)
	go func() {
		_ = a.Lead(t.Context(), "a", func(ctx context.Context, epoch int64) error {
			epochs <- epoch
			<-ctx.Done()
			return nil
		})
	}()
	first := <-epochs
	late, err := a.Client().Put(t.Context(), cluster.EpochKey, "late")
	check(t, err)
	select {
	case next := <-epochs:
		if next <= late.Header.Revision {
			t.Errorf("after %d and %d it began again with %d", first, late.Header.Revision, next)
		}
	case <-time.After(time.Minute):
		t.Error("a leader whose epoch was overtaken goes on")
	}
}

// TestLeadWithoutMajority shows that a leader that nobody answers stops leading, and does not claim to lead before.
func TestLeadWithoutMajority(t *testing.T) {
	r := newRig(t)
	a := r.start(r.options("a", identity.Server))
	check(t, a.Confirm(t.Context()))
	b, _ := r.join(a, "b")
	began, ended := make(chan struct{}), make(chan struct{})
	go func() {
		_ = a.Lead(t.Context(), "a", func(ctx context.Context, _ int64) error {
			close(began)
			<-ctx.Done()
			close(ended)
			return nil
		})
	}()
	<-began
	check(t, a.Confirm(t.Context()))
	if err := b.Confirm(t.Context()); err == nil {
		t.Error("a follower is confirmed as leader")
	}
	b.Stop()
	if err := a.Confirm(t.Context()); err == nil {
		t.Error("a leader is confirmed without a majority")
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("a leader without a majority goes on leading")
	}
}

func TestForcedClusterOfOne(t *testing.T) {
	r := newRig(t)
	oa := r.options("a", identity.Server)
	a := r.start(oa)
	b, _ := r.join(a, "b")
	check(t, put(t.Context(), a, "k", "kept"))
	b.Stop()
	if err := put(t.Context(), a, "k", "lost"); err == nil {
		t.Fatal("a change was accepted without a majority")
	}
	a.Stop()
	oa.Force = true
	again := r.start(oa)
	if got := read(t, again, "k"); got != "kept" {
		t.Errorf("the state has %q", got)
	}
	check(t, put(t.Context(), again, "k", "new"))
}

// TestRestartedWithoutMajority ends a member that was started while no majority is there, and then forces it.
func TestRestartedWithoutMajority(t *testing.T) {
	r := newRig(t)
	oa := r.options("a", identity.Server)
	a := r.start(oa)
	b, _ := r.join(a, "b")
	check(t, put(t.Context(), a, "k", "kept"))
	b.Stop()
	a.Stop()
	again, err := cluster.Open(oa)
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := again.AwaitReady(ctx); err == nil {
		t.Error("it is ready without a majority")
	}
	if got := again.Members(); len(got) != 2 {
		t.Errorf("it knows of %+v", got)
	}
	r.eventually("what is on its disk can be read", func() error {
		resp, err := again.Local().Get(t.Context(), "k")
		if err == nil && (len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "kept") {
			err = fmt.Errorf("the state has %v", resp.Kvs)
		}
		return err
	})
	stopped := make(chan struct{})
	go func() { again.Stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(time.Minute):
		t.Fatal("it does not stop")
	}
	oa.Force = true
	forced := r.start(oa)
	if got := read(t, forced, "k"); got != "kept" {
		t.Errorf("the state has %q", got)
	}
	check(t, put(t.Context(), forced, "k", "new"))
}

// TestReadyWithoutEtcdsWord starts members whose first change nobody commits, as when the leader freezes that it was sent to: they
// are ready as soon as a majority is there, and no sooner.
func TestReadyWithoutEtcdsWord(t *testing.T) {
	r := newRig(t)
	oa := r.options("a", identity.Server)
	a := r.start(oa)
	b, ob := r.join(a, "b")
	check(t, put(t.Context(), a, "k", "kept"))
	b.Stop()
	a.Stop()
	again, err := cluster.Open(oa)
	check(t, err)
	t.Cleanup(again.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := again.AwaitConfirmed(ctx); err == nil {
		t.Error("it is ready without a majority")
	}
	other, err := cluster.Open(ob)
	check(t, err)
	t.Cleanup(other.Stop)
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	check(t, again.AwaitConfirmed(ctx))
	check(t, other.AwaitConfirmed(ctx))
	check(t, put(t.Context(), again, "k", "new"))
}

func TestRestore(t *testing.T) {
	r := newRig(t)
	o := r.options("a", identity.Server)
	a := r.start(o)
	check(t, put(t.Context(), a, "k", "backed up"))
	file := filepath.Join(t.TempDir(), "snapshot")
	rc, err := a.Snapshot(t.Context())
	check(t, err)
	f, err := os.Create(file)
	check(t, err)
	_, err = f.ReadFrom(rc)
	check(t, err)
	check(t, f.Close())
	before, err := a.Client().Put(t.Context(), "k", "later")
	check(t, err)
	a.Stop()

	text, err := os.ReadFile(file)
	check(t, err)
	text[len(text)/2] ^= 1
	bad := file + ".bad"
	check(t, os.WriteFile(bad, text, 0o600))
	if err := cluster.Restore(o, bad, []byte("key")); !fault.Is(err, fault.Corrupt) {
		t.Fatalf("a flipped bit: %v", err)
	}

	check(t, cluster.Restore(o, file, []byte("key")))
	noted := ""
	kept, err := cluster.Finish(o, func(note []byte) error { noted = string(note); return nil })
	check(t, err)
	if noted != "key" {
		t.Errorf("what was noted is %q", noted)
	}
	if _, err := os.Stat(filepath.Join(kept, "member")); err != nil {
		t.Errorf("the state before is not kept: %v", err)
	}
	again := r.start(o)
	if got := read(t, again, "k"); got != "backed up" {
		t.Errorf("the state has %q", got)
	}
	after, err := again.Client().Put(t.Context(), "k", "now")
	check(t, err)
	if after.Header.Revision <= before.Header.Revision {
		t.Errorf("revision %d was used before: %d", after.Header.Revision, before.Header.Revision)
	}
}
