package agent

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
)

func TestOnlyOnesOwnDependentsEndFirst(t *testing.T) {
	of := func(app, service string, needs ...string) *worker {
		i := &gantryv1.Instance{Meta: store.NewMeta(app + "/" + service), Environment: "p", App: app, Service: service}
		return newWorker(nil, &gantryv1.InstanceRecord{Assignment: &gantryv1.Assignment{Instance: i, DependsOn: needs}})
	}
	db, web, proxy, other := of("a", "db"), of("a", "web", "db"), of("a", "proxy", "web", "db"), of("b", "web", "db")
	alone, clinging := of("", "db"), of("", "x", "db")
	all := []*worker{db, web, proxy, other, alone, clinging}
	for w, want := range map[*worker][]*worker{db: {web, proxy}, web: {proxy}, proxy: nil, other: nil, alone: nil} {
		if got := dependents(w, all); !slices.Equal(got, want) {
			t.Errorf("%s waits for %d others", w.id, len(got))
		}
	}
}

// Who waits for others keeps the time that it needs itself.
func TestADependentMayTakeWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorker(nil, &gantryv1.InstanceRecord{Assignment: &gantryv1.Assignment{
			Instance: &gantryv1.Instance{Meta: store.NewMeta("db"), StopGrace: durationpb.New(20 * time.Second)},
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began, ended := time.Now(), make(chan struct{})
		w.letEnd(ctx, ended)
		if took := time.Since(began); took != 40*time.Second {
			t.Errorf("waited %v for one that does not end", took)
		}
		close(ended)
		began = time.Now()
		w.letEnd(t.Context(), ended)
		if took := time.Since(began); took != 0 {
			t.Errorf("waited %v for one that has ended", took)
		}
	})
}
