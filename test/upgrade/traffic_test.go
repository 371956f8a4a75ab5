package upgrade_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/test/lab"
)

const trafficServer = `  echo-NUMBER:
    image: busybox:lab
    command: /talk serve :80 /said/echo-NUMBER
    deploy: {placement: {constraints: ["node.hostname == NODE"]}}
    volumes: MOUNTS
`

// A client uses the address and not the name: names are answered by the daemon, which is killed.
const trafficClient = `  KIND-NUMBER:
    image: busybox:lab
    command: /talk KIND /said/KIND-NUMBER ADDRESS:80
    deploy: {placement: {constraints: ["node.hostname == NODE"]}}
    volumes: MOUNTS
`

// traffic is a service on each machine with two clients on the next one, which reach it by its virtual address: one makes a
// connection after the other, the other one keeps one for good.
type traffic struct {
	*lab.Lab
	talk   *lab.Talk
	failed map[string]int // connections, by client
	asked  map[string]int
}

// send starts the services, then the clients.
func send(t *testing.T, c *lab.Lab) *traffic {
	t.Helper()
	f := &traffic{Lab: c, talk: lab.NewTalk(t), failed: map[string]int{}, asked: map[string]int{}}
	by := c.Node(0)
	text := "name: traffic\nservices:\n"
	for i, n := range c.Nodes() {
		text += strings.NewReplacer("NUMBER", fmt.Sprint(i), "NODE", n.Name(), "MOUNTS", f.talk.Mounts()).Replace(trafficServer)
	}
	dir := lab.Project(t, text)
	by.GantryIn(t, dir, "up", "--timeout", "3m")
	v, err := client.Call(t.Context(), by.Client(t).Apps.Get, &gantryv1.GetAppRequest{Environment: "production", App: "traffic"})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range v.Services {
		i := 0
		if _, err := fmt.Sscanf(s.Service.Name, "echo-%d", &i); err != nil {
			t.Fatal(err)
		}
		next := c.Node((i + 1) % len(c.Nodes())).Name()
		for _, kind := range []string{"ask", "hold"} {
			text += strings.NewReplacer("KIND", kind, "NUMBER", fmt.Sprint(i), "ADDRESS", s.Service.VirtualIp, "NODE", next, "MOUNTS", f.talk.Mounts()).Replace(trafficClient)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	by.GantryIn(t, dir, "up", "--timeout", "3m")
	return f
}

// check wants every client to have connections still, and none of them to have failed since the last time it was called.
func (f *traffic) check(t *testing.T, when string) {
	t.Helper()
	for i := range f.Nodes() {
		ask, hold := fmt.Sprintf("ask-%d", i), fmt.Sprintf("hold-%d", i)
		lab.Eventually(t, time.Minute, ask+" is answered", func() error {
			if all := f.talk.Said(t, ask); len(all) == 0 || all[len(all)-1].What != "answer" || time.Since(all[len(all)-1].At) > time.Second {
				return fmt.Errorf("of %d the last is %v", len(all), all[max(0, len(all)-1):])
			}
			return nil
		})
		f.count(t, when, ask, "failed")
		f.count(t, when, hold, "failed", "broken")
		if held := f.talk.Said(t, hold); len(held) == 0 || held[0].What != "held" {
			t.Errorf("%s: %s has held no connection: %v", when, hold, held)
		}
	}
}

// count reports what is new and wrong of what a client says.
func (f *traffic) count(t *testing.T, when, who string, wrong ...string) {
	t.Helper()
	all := f.talk.Said(t, who)
	for _, s := range all[f.asked[who]:] {
		for _, what := range wrong {
			if s.What != what {
				continue
			}
			if f.failed[who]++; f.failed[who] <= 5 {
				t.Errorf("%s, %s: %s %s %s", when, s.At.Format("15:04:05.000"), who, s.What, s.Text)
			}
		}
	}
	f.asked[who] = len(all)
}

// sum says how much there was.
func (f *traffic) sum(t *testing.T) {
	t.Helper()
	asked, failed := 0, 0
	for who := range f.asked {
		asked, failed = asked+f.asked[who], failed+f.failed[who]
	}
	t.Logf("%d connections between machines through virtual addresses, %d of them kept for good: %d failed or broke", asked, len(f.Nodes()), failed)
}
