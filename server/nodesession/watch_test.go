package nodesession

import (
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// TestANodeHasTimeToComeToANewLeader: it hears of the change only by the silence of the server before. One that this server has
// heard is down after the time that is set.
func TestANodeHasTimeToComeToANewLeader(t *testing.T) {
	term := newTerm(New(storetest.New(t), Options{Logger: slog.New(slog.DiscardHandler)}))
	term.event(store.Event{New: &gantryv1.Cluster{
		Meta: store.NewMeta("cluster"), SuspectAfter: durationpb.New(time.Second), DownAfter: durationpb.New(2 * time.Second),
	}})
	heard, unheard := machineEvent("heard"), machineEvent("unheard")
	term.event(heard)
	term.event(unheard)
	began := time.Now()
	s := term.attach("heard", func(error) {})
	if err := s.report(&gantryv1.NodeReport{Status: &gantryv1.NodeStatus{Meta: store.NewMeta("heard")}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		after          time.Duration
		heard, unheard string
	}{
		{500 * time.Millisecond, stateReady, ""}, {1500 * time.Millisecond, stateSuspect, ""},
		{2900 * time.Millisecond, stateDown, ""}, {4 * time.Second, stateDown, stateDown},
	} {
		term.watch(began.Add(c.after), 0)
		if got := term.nodes["heard"].state; got != c.heard {
			t.Errorf("after %s a node that was heard is %q", c.after, got)
		}
		if got := term.nodes["unheard"].state; got != c.unheard {
			t.Errorf("after %s a node that was not heard is %q", c.after, got)
		}
	}
}

func machineEvent(id string) store.Event {
	return store.Event{New: &gantryv1.Node{Meta: store.NewMeta(id), Name: id}}
}

// TestShorterTimesCountFromWhenTheyAreSet: nodes go by the longer ones until they hear.
func TestShorterTimesCountFromWhenTheyAreSet(t *testing.T) {
	term := newTerm(New(storetest.New(t), Options{Logger: slog.New(slog.DiscardHandler)}))
	term.event(machineEvent("n1"))
	n := term.nodes["n1"]
	n.state, n.heard = stateReady, time.Now().Add(-700*time.Millisecond)
	term.event(store.Event{New: &gantryv1.Cluster{Meta: store.NewMeta("cluster"), SuspectAfter: durationpb.New(600 * time.Millisecond)}})
	term.watch(time.Now(), 0)
	if n.state != stateReady {
		t.Errorf("the node is %s", n.state)
	}
}

// TestNothingIsObservedAfterTheEnd: what a node says to a server that leads no longer is nothing that it knows when it leads again.
func TestNothingIsObservedAfterTheEnd(t *testing.T) {
	st := storetest.New(t)
	h := New(st, Options{Logger: slog.New(slog.DiscardHandler)})
	term := newTerm(h)
	term.event(machineEvent("n1"))
	s := term.attach("n1", func(error) {})
	term.end(h.errNotLeading())
	st.Forget()
	if err := s.report(&gantryv1.NodeReport{Status: &gantryv1.NodeStatus{Meta: store.NewMeta("n1")}}); err == nil {
		t.Error("the report is taken")
	}
	if left, ok := store.Get[*gantryv1.NodeStatus](st.Snapshot(), "n1"); ok {
		t.Errorf("the node is %s", left.State)
	}
}
