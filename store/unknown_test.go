package store_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// TestWhatMayBeStoredIsSeenByTheNextChange has a transaction whose answer is lost and whose writes are seen late: the next
// change, which reads a list, sees them all the same.
func TestWhatMayBeStoredIsSeenByTheNextChange(t *testing.T) {
	s, link := storetest.NewLinked(t)
	var made atomic.Int32
	add := func() error { // services that are told apart by how many there are, as addresses are by those that are taken
		key := fmt.Sprintf("p/a/s%d", made.Add(1))
		return s.Update(t.Context(), func(tx *store.Tx) error {
			store.Put(tx, service(key, int32(len(store.List[*gantryv1.Service](tx, "p/a/")))))
			return nil
		})
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	link.Lose()
	if err := add(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "not known whether") {
		t.Fatalf("an answer that is lost: %v", err)
	}
	second := make(chan error, 1)
	go func() { second <- add() }()
	link.Show()
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	for n, o := range store.List[*gantryv1.Service](s.Snapshot(), "p/a/") {
		if o.Replicas != int32(n) {
			t.Errorf("%s was made when there were %d others, and the change saw %d", o.Meta.Key, n, o.Replicas)
		}
	}
}
