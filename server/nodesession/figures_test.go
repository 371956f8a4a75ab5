package nodesession_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/store"
)

// A session that is not read is behind with what comes after what its stream has room for, and with nothing once it reads.
func TestSessionsThatAreBehindAreCounted(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	web := service("a", "web", "p/a/default")
	web[1].(*gantryv1.Release).Spec.Container.Env = []string{"LARGE=" + strings.Repeat("x", 256<<10)}
	w.put(machine("n1"), machine("n2"))
	w.put(web...)
	quick := w.join("n2")
	w.state("n2", "ready")
	if sessions, _ := w.hub.Backlog(); sessions != 0 {
		t.Errorf("%d sessions are behind, and nothing has happened", sessions)
	}
	stream := gantryv1connect.NewNodeSessionServiceClient(w.http, w.url).Session(t.Context())
	if err := stream.Send(&gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: "n1"}, Status: &gantryv1.NodeStatus{Meta: store.NewMeta("n1")}}); err != nil {
		t.Fatal(err)
	}
	w.state("n1", "ready")
	behind := func(want int) {
		t.Helper()
		sessions, changes := 0, 0
		for n := range 200 {
			if sessions, changes = w.hub.Backlog(); sessions == want && (changes > 0) == (want > 0) {
				return
			}
			if want > 0 { // more than the stream has room for
				w.put(instance(fmt.Sprintf("i%d", n), "a", "web", "n1"))
			}
			<-time.After(20 * time.Millisecond)
		}
		t.Fatalf("%d sessions are behind with %d changes, want %d", sessions, changes, want)
	}
	behind(1)
	quick.until("nothing of that", func() bool { return quick.nodes["n1"] && len(quick.here) == 0 })
	go func() {
		for {
			if _, err := stream.Receive(); err != nil {
				return
			}
		}
	}()
	behind(0)
	if n, _, _ := w.hub.Figures().Updates.Read(); n == 0 {
		t.Error("no update was timed")
	}
}
