package rollout

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// down is `gantry down` of web's app.
func down(t testing.TB, s *store.Store) {
	t.Helper()
	update(t, s, func(tx *store.Tx) error {
		store.Delete[*gantryv1.App](tx, "p/a")
		return store.Modify(tx, "p/a/web", func(o *gantryv1.Service) error { o.Removing = true; return nil })
	})
}

// TestNetworksOfAnAppThatIsBack has an `up` stored after it was decided that the app's networks are idle.
func TestNetworksOfAnAppThatIsBack(t *testing.T) {
	for what, comes := range map[string][]store.Object{
		"nothing":   nil,
		"an app":    {&gantryv1.App{Meta: store.NewMeta("p/a")}},
		"a service": {&gantryv1.Service{Meta: store.NewMeta("p/a/web"), Environment: "p", App: "a", Name: "web"}},
	} {
		t.Run(what, func(t *testing.T) {
			s := storetest.New(t)
			put(t, s, &gantryv1.Network{Meta: store.NewMeta("p/a/default")})
			c, sub := leader(t, s)
			events, err := sub.Take()
			if err != nil {
				t.Fatal(err)
			}
			work, _ := c.think(events)
			put(t, s, comes...)
			if err := work.commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, kept := store.Get[*gantryv1.Network](s.Snapshot(), "p/a/default"); kept != (comes != nil) {
				t.Errorf("the network is there: %t", kept)
			}
		})
	}
}

// TestAJobsRecordGoesWithIt: one that is made anew begins with release 1 again, and must not be taken for what has run.
func TestAJobsRecordGoesWithIt(t *testing.T) {
	s := storetest.New(t)
	web(t, s, 1)
	c, sub := leader(t, s)
	settle(t, s, c, sub, 0)
	put(t, s, &gantryv1.Job{Meta: store.NewMeta("p/a/web"), Release: 1})
	down(t, s)
	for range 100 {
		pass(t, c, sub)
		agents(t, s, 0)
		snap := s.Snapshot()
		if _, ok := store.Get[*gantryv1.Service](snap, "p/a/web"); ok {
			continue
		}
		if _, ok := store.Get[*gantryv1.Job](snap, "p/a/web"); ok {
			t.Error("the service has gone and the record of its runs has not")
		}
		return
	}
	t.Fatal("the service has not gone")
}
