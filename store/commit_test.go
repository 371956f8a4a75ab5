package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// withClient is a store and the etcd below it.
func withClient(t *testing.T) (*store.Store, *clientv3.Client) {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	m, err := cluster.Start(t.Context(), cluster.Options{Root: dir + "/etcd", Run: dir + "/run", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Stop)
	return open(t, m.Client()), m.Client()
}

func open(t *testing.T, c *clientv3.Client) *store.Store {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := store.New(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	return s
}

func TestADeposedLeaderChangesNothing(t *testing.T) {
	s, c := withClient(t)
	const key = "/gantry/Epoch/leader"
	begin := func() int64 {
		r, err := c.Put(t.Context(), key, "leader")
		if err != nil {
			t.Fatal(err)
		}
		return r.Header.Revision
	}
	first := begin()
	s.SetGuard(key, first)
	put(t, s, service("p/a/db", 1))
	begin() // another one leads
	err := s.Update(t.Context(), func(tx *store.Tx) error { store.Put(tx, service("p/a/db", 2)); return nil })
	if !fault.Is(err, fault.Unavailable) || fault.HintOf(err) == "" {
		t.Fatalf("a deposed leader wrote: %v", err)
	}
	if got, _ := store.Get[*gantryv1.Service](s.Snapshot(), "p/a/db"); got.Replicas != 1 {
		t.Fatalf("it has %d replicas", got.Replicas)
	}
	s.ClearGuard()
	put(t, s, service("p/a/db", 3))
}

func TestAGuardIsNotMistakenForAConflict(t *testing.T) {
	s, c := withClient(t)
	r, err := c.Put(t.Context(), "/gantry/Epoch/leader", "leader")
	if err != nil {
		t.Fatal(err)
	}
	s.SetGuard("/gantry/Epoch/leader", r.Header.Revision)
	put(t, s, service("p/a/db", 1))
	// Another store writes between the read and the commit: the change is made again.
	other, runs := open(t, c), 0
	err = s.Update(t.Context(), func(tx *store.Tx) error {
		if runs++; runs == 1 {
			put(t, other, service("p/a/db", 10))
		}
		return store.Modify(tx, "p/a/db", func(o *gantryv1.Service) error { o.Replicas++; return nil })
	})
	if got, _ := store.Get[*gantryv1.Service](s.Snapshot(), "p/a/db"); err != nil || got.Replicas != 11 || runs < 2 {
		t.Fatalf("%d replicas after %d runs: %v", got.GetReplicas(), runs, err)
	}
}

// TestChangesThatShareATransaction holds many changes up until all of them wait, so that they are committed together.
func TestChangesThatShareATransaction(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 0))
	const many = 50
	held, begun := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.Update(t.Context(), func(*store.Tx) error { close(begun); <-held; return nil })
		if err != nil {
			t.Error(err)
		}
	})
	<-begun
	mine := errors.New("mine")
	before := s.Revision()
	for n := range many {
		wg.Go(func() {
			err := s.Update(t.Context(), func(tx *store.Tx) error {
				if n%10 == 3 {
					store.Put(tx, service("p/a/never", 1))
					return mine
				}
				if n%10 == 7 { // what must not be stored is its own fault only
					store.Put(tx, &gantryv1.InstanceStatus{Meta: store.NewMeta("i")})
					return nil
				}
				if n%10 == 9 {
					panic("a bug")
				}
				store.Put(tx, service(fmt.Sprintf("p/a/s%d", n), 1))
				return store.Modify(tx, "p/a/db", func(o *gantryv1.Service) error {
					o.Replicas++
					if got := len(store.List[*gantryv1.Service](tx, "p/a/s")); int32(got) != o.Replicas {
						t.Errorf("the change sees %d services after %d changes", got, o.Replicas)
					}
					return nil
				})
			})
			switch {
			case n%10 == 3 && !errors.Is(err, mine), (n%10 == 7 || n%10 == 9) && !fault.Is(err, fault.Internal):
				t.Errorf("change %d failed with %v", n, err)
			case n%10 != 3 && n%10 != 7 && n%10 != 9 && err != nil:
				t.Errorf("change %d: %v", n, err)
			}
		})
	}
	close(held)
	wg.Wait()
	snap := s.Snapshot()
	if got, _ := store.Get[*gantryv1.Service](snap, "p/a/db"); got.Replicas != many*7/10 {
		t.Fatalf("%d of %d changes", got.Replicas, many*7/10)
	}
	if _, ok := store.Get[*gantryv1.Service](snap, "p/a/never"); ok {
		t.Fatal("a change that failed was stored")
	}
	if used := snap.Revision() - before; used >= many*7/10 {
		t.Fatalf("no two of %d changes shared a transaction", many*7/10)
	}
}

func TestAnAbandonedChangeRunsNoMore(t *testing.T) {
	s := storetest.New(t)
	held, begun := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Update(t.Context(), func(*store.Tx) error { close(begun); <-held; return nil })
	})
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.Update(ctx, func(tx *store.Tx) error { store.Put(tx, service("p/a/db", 1)); return nil })
	if !fault.Is(err, fault.Unavailable) {
		t.Fatalf("abandoned: %v", err)
	}
	close(held)
	wg.Wait()
	put(t, s, service("p/a/web", 1))
	if _, ok := store.Get[*gantryv1.Service](s.Snapshot(), "p/a/db"); ok {
		t.Fatal("a change was made after its caller had gone")
	}
}

func TestForgetDropsObservationsOnly(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 1))
	s.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta("i1")}}, nil)
	sub, err := s.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	s.Forget()
	snap := s.Snapshot()
	if len(store.List[*gantryv1.InstanceStatus](snap, "")) != 0 || len(store.List[*gantryv1.Service](snap, "")) != 1 {
		t.Fatal("the wrong ones are gone")
	}
	if events, err := sub.Take(); err != nil || len(events) != 1 || events[0].New != nil {
		t.Fatalf("events: %v, %v", events, err)
	}
}

func TestWhatANewerVersionWroteIsLeftAlone(t *testing.T) {
	s, c := withClient(t)
	if _, err := c.Put(t.Context(), "/gantry/Holiday/p", "whatever"); err != nil {
		t.Fatal(err)
	}
	// A field that this version does not know.
	extra := protowire.AppendTag(nil, 900, protowire.BytesType)
	extra = protowire.AppendString(extra, "from the future")
	o := service("p/a/db", 1)
	value, err := proto.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), "/gantry/Service/p/a/db", string(value)+string(extra)); err != nil {
		t.Fatal(err)
	}
	put(t, s, service("p/a/web", 1))
	err = s.Update(t.Context(), func(tx *store.Tx) error {
		return store.Modify(tx, "p/a/db", func(o *gantryv1.Service) error { o.Replicas = 2; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Get(t.Context(), "/gantry/Service/p/a/db")
	if err != nil || !strings.Contains(string(got.Kvs[0].Value), "from the future") {
		t.Fatalf("the field is gone: %q, %v", got.Kvs, err)
	}
	put(t, s, service("p/a/db", 2)) // made anew, as a part that knows no other way does
	if got, err = c.Get(t.Context(), "/gantry/Service/p/a/db"); err != nil || !strings.Contains(string(got.Kvs[0].Value), "from the future") {
		t.Fatalf("the field is gone with the object that had it: %q, %v", got.Kvs, err)
	}
	again := open(t, c) // a start over such a state
	if o, ok := store.Get[*gantryv1.Service](again.Snapshot(), "p/a/db"); !ok || o.Replicas != 2 {
		t.Fatalf("%v", o)
	}
	if got, err = c.Get(t.Context(), "/gantry/Holiday/p"); err != nil || string(got.Kvs[0].Value) != "whatever" {
		t.Fatalf("the unknown object is gone: %v, %v", got, err)
	}
}

// register is one service whose replicas clients read, write and change on condition.
type register struct {
	op    string
	value int32
	from  int32
}

func registerModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return int32(0) },
		Step: func(state, input, output any) (bool, any) {
			now, in := state.(int32), input.(register)
			switch in.op {
			case "read":
				return output.(int32) == now, now
			case "write":
				return true, in.value
			default:
				if output.(int32) != 1 {
					return now != in.from, now
				}
				return now == in.from, in.value
			}
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %v", input, output) },
	}
}

func TestTheStoreIsLinearizable(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 0))
	const clients, each = 6, 40
	began := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			for n := range each {
				in := register{op: []string{"read", "write", "swap"}[(client+n)%3], value: int32(client*each + n + 1), from: int32(n)}
				call := time.Since(began)
				if in.op == "swap" {
					in.from = replicas(s)
					call = time.Since(began)
				}
				out, err := act(t.Context(), s, in)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				history = append(history, porcupine.Operation{
					ClientId: client, Input: in, Call: call.Nanoseconds(), Output: out, Return: time.Since(began).Nanoseconds(),
				})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if result := porcupine.CheckOperationsTimeout(registerModel(), history, time.Minute); result != porcupine.Ok {
		t.Fatalf("%d operations are not linearizable: %v", len(history), result)
	}
	// The check can fail: a read of what was never there is not linearizable.
	bad := append(history, porcupine.Operation{Input: register{op: "read"}, Output: int32(-1), Call: time.Since(began).Nanoseconds(), Return: time.Since(began).Nanoseconds()})
	if porcupine.CheckOperations(registerModel(), bad) {
		t.Fatal("the model accepts everything")
	}
}

func replicas(s *store.Store) int32 {
	o, _ := store.Get[*gantryv1.Service](s.Snapshot(), "p/a/db")
	return o.GetReplicas()
}

// act does one operation; 1 is a swap that was made.
func act(ctx context.Context, s *store.Store, in register) (out int32, err error) {
	if in.op == "read" {
		return replicas(s), nil
	}
	err = s.Update(ctx, func(tx *store.Tx) error {
		out = 0
		return store.Modify(tx, "p/a/db", func(o *gantryv1.Service) error {
			if in.op == "write" || o.Replicas == in.from {
				o.Replicas, out = in.value, 1
			}
			return nil
		})
	})
	return out, err
}

// BenchmarkUpdateTogether is the rate of changes by many callers at once.
func BenchmarkUpdateTogether(b *testing.B) {
	s := storetest.New(b)
	b.SetParallelism(50)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			err := s.Update(b.Context(), func(tx *store.Tx) error { store.Put(tx, service("p/a/db", 1)); return nil })
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}
