package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

func service(key string, replicas int32) *gantryv1.Service {
	return &gantryv1.Service{Meta: store.NewMeta(key), Replicas: replicas}
}

func put(t *testing.T, s *store.Store, objs ...store.Object) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		for _, o := range objs {
			store.Put(tx, o)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestUpdateIsSeenByReads(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 1), service("p/a/web", 2), service("p/b/db", 3))
	snap := s.Snapshot()
	if got, ok := store.Get[*gantryv1.Service](snap, "p/a/web"); !ok || got.Replicas != 2 || got.Meta.CreatedAt == nil {
		t.Fatalf("Get = %v, %v", got, ok)
	}
	if got := store.List[*gantryv1.Service](snap, "p/a/"); len(got) != 2 || got[0].Meta.Key != "p/a/db" {
		t.Fatalf("List = %v", got)
	}
}

func TestTransactionReadsItsOwnWrites(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 1))
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, service("p/a/web", 1))
		store.Delete[*gantryv1.Service](tx, "p/a/db")
		got := store.List[*gantryv1.Service](tx, "p/a/")
		if len(got) != 1 || got[0].Meta.Key != "p/a/web" {
			return fmt.Errorf("inside the transaction: %v", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFailedUpdateChangesNothing(t *testing.T) {
	s := storetest.New(t)
	before := s.Revision()
	stop := errors.New("stop")
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, service("p/a/db", 1))
		return stop
	})
	if !errors.Is(err, stop) || s.Revision() != before {
		t.Fatalf("err %v, revision %d to %d", err, before, s.Revision())
	}
	err = s.Update(t.Context(), func(tx *store.Tx) error {
		return store.Modify(tx, "p/a/db", func(*gantryv1.Service) error { return nil })
	})
	if !fault.Is(err, fault.NotFound) {
		t.Fatalf("modifying what is absent: %v", err)
	}
}

func TestParallelIncrementsAreAllCounted(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 0))
	var wg sync.WaitGroup
	const workers, each = 8, 10
	for range workers {
		wg.Go(func() {
			for range each {
				err := s.Update(t.Context(), func(tx *store.Tx) error {
					return store.Modify(tx, "p/a/db", func(o *gantryv1.Service) error { o.Replicas++; return nil })
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, _ := store.Get[*gantryv1.Service](s.Snapshot(), "p/a/db")
	if got.Replicas != workers*each {
		t.Fatalf("%d of %d increments", got.Replicas, workers*each)
	}
}

func TestWatchDeliversEveryChangeInOrder(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 0))
	var first int32 = -1
	sub, err := s.ViewAndWatch(func(r *store.ReadTx) error {
		o, _ := store.Get[*gantryv1.Service](r, "p/a/db")
		first = o.Replicas
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for i := range int32(20) {
		put(t, s, service("p/a/db", i+1))
	}
	s.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta("i1")}}, nil)
	var seen []store.Event
	for len(seen) < 21 {
		events, err := sub.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, events...)
	}
	for i, e := range seen[:20] {
		if got := e.New.(*gantryv1.Service).Replicas; got != first+int32(i)+1 {
			t.Fatalf("event %d has %d", i, got)
		}
	}
	if _, ok := seen[20].New.(*gantryv1.InstanceStatus); !ok {
		t.Fatalf("last event is %T", seen[20].New)
	}
}

func TestStateSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	s, stop := storetest.Open(t, dir)
	put(t, s, service("p/a/db", 7))
	s.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta("i1")}}, nil)
	stop()
	s, stop = storetest.Open(t, dir)
	defer stop()
	if got, ok := store.Get[*gantryv1.Service](s.Snapshot(), "p/a/db"); !ok || got.Replicas != 7 {
		t.Fatalf("after the restart: %v, %v", got, ok)
	}
	if _, ok := store.Get[*gantryv1.InstanceStatus](s.Snapshot(), "i1"); ok {
		t.Fatal("an observation was stored")
	}
}

func TestUpdateRefusesObservations(t *testing.T) {
	s := storetest.New(t)
	err := s.Update(context.Background(), func(tx *store.Tx) error {
		store.Put(tx, &gantryv1.InstanceStatus{Meta: store.NewMeta("i1")})
		return nil
	})
	if err == nil {
		t.Fatal("an observation was stored")
	}
}

func BenchmarkUpdate(b *testing.B) {
	s := storetest.New(b)
	for i := 0; b.Loop(); i++ {
		err := s.Update(b.Context(), func(tx *store.Tx) error {
			store.Put(tx, service("p/a/db", int32(i)))
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func TestOriginsAreNoted(t *testing.T) {
	s := storetest.New(t)
	sub, err := s.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	ctx := store.WithOrigin(t.Context(), store.Origin{By: "ann", Cause: "AppService/Scale"})
	for _, change := range []func(*store.Tx){
		func(tx *store.Tx) { store.Put(tx, service("p/a/db", 1)) },
		func(tx *store.Tx) { store.Delete[*gantryv1.Service](tx, "p/a/db") },
	} {
		if err := s.Update(ctx, func(tx *store.Tx) error { change(tx); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	var seen []store.Event
	for len(seen) < 2 {
		events, err := sub.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, events...)
	}
	if m := seen[0].New.GetMeta(); m.ChangedBy != "ann" || m.Cause != "AppService/Scale" {
		t.Errorf("put by %q because of %q", m.ChangedBy, m.Cause)
	}
	if o := seen[1].Origin; o.By != "ann" || o.Cause != "AppService/Scale" {
		t.Errorf("removed by %q because of %q", o.By, o.Cause)
	}
}

func TestTheStoreCountsWhatItDoes(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 1), service("p/a/web", 1))
	if err := s.Update(t.Context(), func(*store.Tx) error { return errors.New("no") }); err == nil {
		t.Fatal("an error was lost")
	}
	f := s.Figures()
	updates, _, _ := f.Updates.Read()
	transactions, _, _ := f.Transactions.Read()
	if updates != 2 || transactions != 1 || f.Writes.Value() != 2 || f.Waiting.Value() != 0 || f.Conflicts.Value()+f.Failures.Value() != 0 {
		t.Errorf("%d updates, %d transactions, %d writes, %d wait", updates, transactions, f.Writes.Value(), f.Waiting.Value())
	}
}

func TestAnObjectMadeAnewKeepsItsBirth(t *testing.T) {
	s := storetest.New(t)
	put(t, s, service("p/a/db", 1))
	before, _ := store.Get[*gantryv1.Service](s.Snapshot(), "p/a/db")
	put(t, s, service("p/a/db", 2))
	after, _ := store.Get[*gantryv1.Service](s.Snapshot(), "p/a/db")
	if before.Meta.CreatedAt == nil || !proto.Equal(after.Meta.CreatedAt, before.Meta.CreatedAt) || after.Replicas != 2 {
		t.Fatalf("%v, before %v", after, before)
	}
}

// TestGate refuses changes by who makes them.
func TestGate(t *testing.T) {
	s := storetest.New(t)
	refusal := errors.New("not now")
	s.SetGate(func(o store.Origin) error {
		if o.By == "anna" {
			return refusal
		}
		return nil
	})
	err := s.Update(store.WithOrigin(t.Context(), store.Origin{By: "anna"}), func(tx *store.Tx) error {
		store.Put(tx, service("p/a/db", 1))
		return nil
	})
	if !errors.Is(err, refusal) {
		t.Errorf("a change that is refused: %v", err)
	}
	put(t, s, service("p/a/web", 1))
	if got := store.List[*gantryv1.Service](s.Snapshot(), ""); len(got) != 1 || got[0].Meta.Key != "p/a/web" {
		t.Errorf("the state has %v", got)
	}
}
