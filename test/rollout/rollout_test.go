// Package rollout_test takes services of two machines from release to release, by every strategy, and counts which release
// answers.
package rollout_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

const patience = 2 * time.Minute

// shop is an app on two machines: services that answer with their generation, and a client on each machine.
type shop struct {
	*lab.Lab
	*lab.Node // the one that is asked
	dir       string
	services  map[string]*web
	clients   []*gantryv1.InstanceView
}

// web is a service of the shop, in words of Compose.
type web struct {
	generation     int
	deploy, update string
	health         string // keys of healthcheck; none without it
}

func open(t *testing.T, services map[string]*web) *shop {
	t.Helper()
	c := lab.Form(t, lab.Shape{Servers: 1, Nodes: 1})
	s := &shop{Lab: c, Node: c.Node(0), dir: lab.Project(t, ""), services: services}
	s.ImportBusybox(t)
	s.write(t)
	s.GantryIn(t, s.dir, "up")
	s.clients = s.AwaitReady(t, "client", 2)
	return s
}

// write writes the Compose file with every service as it is now.
func (s *shop) write(t *testing.T) {
	t.Helper()
	var out strings.Builder
	fmt.Fprintf(&out, "name: shop\nservices:\n  client: {image: %s, command: sleep 10000, init: true, deploy: {mode: global}}\n", lab.Busybox)
	for _, name := range slices.Sorted(maps.Keys(s.services)) {
		w := s.services[name]
		fmt.Fprintf(&out, `  %s:
    image: %s
    command: sh -c 'mkdir -p /www; echo $$GENERATION >/www/index.html; echo generation $$GENERATION is open; exec httpd -f -p 80 -h /www'
    environment: {GENERATION: "%d"}
    init: true
    stop_grace_period: 1s
    deploy: {%s}
    x-gantry: {update: {%s}}
`, name, lab.Busybox, w.generation, w.deploy, w.update)
		if w.health != "" {
			fmt.Fprintf(&out, "    healthcheck: {%s}\n", w.health)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "compose.yaml"), []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// next writes the next generation of a service, and returns it.
func (s *shop) next(t *testing.T, service string) int {
	t.Helper()
	s.services[service].generation++
	s.write(t)
	return s.services[service].generation
}

// of lists the instances of a service that nobody has sent away.
func (s *shop) of(t *testing.T, service string) (out []*gantryv1.InstanceView) {
	t.Helper()
	for _, v := range s.Instances(t) {
		if v.Instance.Service == service && v.Instance.Desired == gantryv1.Instance_DESIRED_RUNNING {
			out = append(out, v)
		}
	}
	return out
}

func keys(views []*gantryv1.InstanceView) (out []string) {
	for _, v := range views {
		out = append(out, v.Instance.Meta.Key)
	}
	slices.Sort(out)
	return out
}

// releases counts instances by release.
func releases(views []*gantryv1.InstanceView) map[int64]int {
	out := map[int64]int{}
	for _, v := range views {
		out[v.Instance.Release]++
	}
	return out
}

// connect opens that many connections from each machine to the service's address, and counts the generations that answer.
func (s *shop) connect(t *testing.T, service string, times int) map[string]int {
	t.Helper()
	address := s.of(t, service)[0].Instance.VirtualIp
	if address == "" {
		t.Fatalf("%s has no address", service)
	}
	seen := map[string]int{}
	script := fmt.Sprintf(`for i in $(seq %d); do printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 %s 80 | tail -n 1; done`, times, address)
	for _, c := range s.clients {
		for _, generation := range strings.Fields(s.GantryIn(t, s.dir, "exec", c.Instance.Meta.Key, "sh", "-c", script)) {
			seen[generation]++
		}
	}
	return seen
}

// answers fails the test unless every connection reaches a generation.
func (s *shop) answers(t *testing.T, service string, generation int) {
	t.Helper()
	if seen := s.connect(t, service, 30); seen[fmt.Sprint(generation)] != 60 {
		t.Errorf("of 60 connections to %s, generations have answered %v, not all %d", service, seen, generation)
	}
}

// rollout is the last one of a service.
func (s *shop) rollout(t *testing.T, service string) *gantryv1.Operation {
	t.Helper()
	op := &gantryv1.Operation{}
	if err := protojson.Unmarshal([]byte(s.GantryIn(t, s.dir, "rollout", "show", service, "-o", "json")), op); err != nil {
		t.Fatal(err)
	}
	return op
}

func (s *shop) awaitRollout(t *testing.T, service string, state gantryv1.Operation_State) *gantryv1.Operation {
	t.Helper()
	var op *gantryv1.Operation
	lab.Eventually(t, patience, fmt.Sprintf("the rollout of %s is %s", service, state), func() error {
		if op = s.rollout(t, service); op.State != state {
			return fmt.Errorf("it is %v", op)
		}
		return nil
	})
	return op
}

// awaitInstances waits until a test of a service's instances holds.
func (s *shop) awaitInstances(t *testing.T, service, what string, test func([]*gantryv1.InstanceView) bool) (views []*gantryv1.InstanceView) {
	t.Helper()
	lab.Eventually(t, patience, service+": "+what, func() error {
		if views = s.of(t, service); !test(views) {
			return fmt.Errorf("%v", views)
		}
		return nil
	})
	return views
}

func TestStrategies(t *testing.T) {
	s := open(t, map[string]*web{
		"canary": {1, "replicas: 4, update_config: {parallelism: 0}", "strategy: canary, canary: [{count: 2, weight: 25, approval: true}, {count: 3, pause: 3s}]", ""},
		"blue":   {1, "replicas: 2", "strategy: blue-green, keep: 30m", `test: "test $$GENERATION != 2 || test -e /go", interval: 300ms, timeout: 30s, retries: 1000`},
		"anew":   {1, "replicas: 3", "strategy: recreate", ""},
		"pace":   {1, "replicas: 4, update_config: {parallelism: 1, monitor: 2s, failure_action: rollback}, rollback_config: {parallelism: 0}", "", ""},
	})
	t.Run("canary", s.canary)
	t.Run("blue-green", s.blueGreen)
	t.Run("recreate", s.recreate)
	t.Run("steered", s.steered)
	t.Run("hung", s.hung)
	t.Run("stale", s.stale)
}

// canary gives two of four instances a quarter of the connections until a person approves, and watches the next step for a time.
func (s *shop) canary(t *testing.T) {
	s.next(t, "canary")
	s.GantryIn(t, s.dir, "up", "canary")
	if seen := s.connect(t, "canary", 200); seen["2"] < 50 || seen["2"] > 150 || seen["1"]+seen["2"] != 400 {
		t.Errorf("of 400 connections, 25 %% of them for generation 2, generations have answered %v", seen)
	}
	if op := s.rollout(t, "canary"); op.State != gantryv1.Operation_STATE_PAUSED || op.Waiting != "approval" {
		t.Errorf("%v", op)
	}
	s.GantryIn(t, s.dir, "rollout", "resume", "canary")
	op := s.awaitRollout(t, "canary", gantryv1.Operation_STATE_DONE)
	wait := op.Steps[1].Steps[1]
	if took := wait.EndedAt.AsTime().Sub(wait.StartedAt.AsTime()); took < 3*time.Second {
		t.Errorf("%q took %s", wait.Name, took)
	}
	s.answers(t, "canary", 2)
}

// blueGreen switches to a whole new set once all of it is healthy, goes back to the old one, which has run all the while, and
// then away from it for good.
func (s *shop) blueGreen(t *testing.T) {
	old := s.of(t, "blue")
	s.next(t, "blue")
	s.GantryIn(t, s.dir, "up", "-d", "blue")
	both := s.awaitInstances(t, "blue", "both sets run", func(views []*gantryv1.InstanceView) bool {
		return len(views) == 4 && !slices.ContainsFunc(views, func(v *gantryv1.InstanceView) bool {
			return v.Status.GetPhase() != gantryv1.InstanceStatus_PHASE_RUNNING
		})
	})
	s.answers(t, "blue", 1)
	for _, v := range both {
		if v.Instance.Release == 2 {
			s.GantryIn(t, s.dir, "exec", v.Instance.Meta.Key, "touch", "/go")
		}
	}
	s.GantryIn(t, s.dir, "up", "blue")
	s.answers(t, "blue", 2)
	if kept := releases(s.of(t, "blue")); kept[1] != 2 || kept[2] != 2 {
		t.Errorf("after the switch there are, by release, %v", kept)
	}

	s.GantryIn(t, s.dir, "rollout", "abort", "blue")
	lab.Eventually(t, patience, "the old set answers", func() error {
		if seen := s.connect(t, "blue", 10); seen["1"] != 20 {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
	s.awaitRollout(t, "blue", gantryv1.Operation_STATE_ABORTED)
	back := s.AwaitReady(t, "blue", 2)
	if !slices.Equal(keys(back), keys(old)) {
		t.Errorf("what it went back to is %v, not %v", keys(back), keys(old))
	}
	for i, v := range back {
		if v.Status.Restarts > 0 || !v.Status.StartedAt.AsTime().Equal(old[i].Status.StartedAt.AsTime()) {
			t.Errorf("%s has been started again", lab.Name(v))
		}
	}

	s.services["blue"].generation = 4
	s.services["blue"].update = "strategy: blue-green, keep: 2s"
	s.write(t)
	s.GantryIn(t, s.dir, "up", "blue")
	s.answers(t, "blue", 4)
	op := s.awaitRollout(t, "blue", gantryv1.Operation_STATE_DONE)
	for _, step := range op.Steps {
		if took := step.EndedAt.AsTime().Sub(step.StartedAt.AsTime()); step.Action == "keep" && took < 2*time.Second {
			t.Errorf("the old set was kept for %s", took)
		}
	}
	if left := releases(s.AwaitReady(t, "blue", 2)); left[3] != 2 {
		t.Errorf("after keep there are, by release, %v", left)
	}
}

// recreate looks at the processes of both machines while it goes on: what is new never runs beside what is old.
func (s *shop) recreate(t *testing.T) {
	running := func() map[int64]bool {
		out := map[int64]bool{}
		for _, n := range s.Nodes() {
			for _, r := range n.Running() {
				if strings.Contains(r.Slot, "/anew.") {
					out[r.Release] = true
				}
			}
		}
		return out
	}
	stop, mixed := make(chan struct{}), make(chan bool, 1)
	go func() {
		both := false
		for {
			// First what is new, then what is old: what has ended does not come back.
			if running()[2] && running()[1] {
				both = true
			}
			select {
			case <-stop:
				mixed <- both
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	if now := running(); !now[1] {
		t.Errorf("the processes of release 1 are not seen: %v", now)
	}
	s.next(t, "anew")
	result := s.TryIn(s.dir, "up", "anew")
	close(stop)
	if <-mixed {
		t.Error("both releases have run at a time")
	}
	if result.Code != 0 {
		t.Fatalf("up: %s", result.Stderr)
	}
	if now := running(); !now[2] || now[1] {
		t.Errorf("running are the releases %v", now)
	}
	s.answers(t, "anew", 2)
}

// steered pauses a rollout on its way, lets it go on, and takes it back.
func (s *shop) steered(t *testing.T) {
	old := s.of(t, "pace")
	moved := func(n int) func([]*gantryv1.InstanceView) bool {
		return func(views []*gantryv1.InstanceView) bool { return releases(views)[2] >= n }
	}
	s.next(t, "pace")
	s.GantryIn(t, s.dir, "up", "-d", "pace")
	s.awaitInstances(t, "pace", "one is of the new release", moved(1))
	s.GantryIn(t, s.dir, "rollout", "pause", "pace")
	if out := s.GantryIn(t, s.dir, "rollout", "ls", "pace"); !strings.Contains(out, "paused") {
		t.Errorf("rollout ls:\n%s", out)
	}
	s.awaitInstances(t, "pace", "what was begun has ended", func(views []*gantryv1.InstanceView) bool { return len(views) == 4 })
	paused := keys(s.AwaitReady(t, "pace", 4))
	time.Sleep(4 * time.Second) // in which it would have gone on, twice
	if now := keys(s.of(t, "pace")); !slices.Equal(now, paused) {
		t.Errorf("while it was paused, %v became %v", paused, now)
	}
	if result := s.TryIn(s.dir, "rollout", "pause", "pace"); result.Code == 0 {
		t.Error("a rollout that is paused was paused")
	}

	s.GantryIn(t, s.dir, "rollout", "resume", "pace")
	s.awaitInstances(t, "pace", "one more is of the new release", moved(releases(s.of(t, "pace"))[2]+1))
	s.GantryIn(t, s.dir, "rollout", "abort", "pace")
	s.awaitRollout(t, "pace", gantryv1.Operation_STATE_ABORTED)
	back := s.AwaitReady(t, "pace", 4)
	if got := releases(back); got[1] != 4 {
		t.Errorf("after the abort there are, by release, %v", got)
	}
	if last := old[len(old)-1].Instance.Meta.Key; !slices.Contains(keys(back), last) {
		t.Errorf("%s, which had not been touched, was replaced", last)
	}
	if result := s.TryIn(s.dir, "rollout", "abort", "pace"); result.Code == 0 || !strings.Contains(result.Stderr, "has ended: it is aborted") {
		t.Errorf("a second abort: %d %s", result.Code, result.Stderr)
	}
}

// hung is a release whose health check never ends.
func (s *shop) hung(t *testing.T) {
	s.services["pace"].generation, s.services["pace"].health = 3, "test: sleep 1000, interval: 300ms, timeout: 1s, retries: 2"
	s.write(t)
	before := s.of(t, "pace")
	result := s.TryWithin(patience, s.dir, "up", "pace")
	if result.Code != 1 {
		t.Errorf("up: exit %d", result.Code)
	}
	for _, want := range []string{"has gone back to release 1", "took longer than its timeout", "last log lines of pace.1", "generation 3 is open"} {
		if !strings.Contains(result.Stderr, want) {
			t.Errorf("up does not say %q:\n%s", want, result.Stderr)
		}
	}
	s.awaitRollout(t, "pace", gantryv1.Operation_STATE_ROLLED_BACK)
	if after := keys(s.AwaitReady(t, "pace", 4)); !slices.Equal(after, keys(before)) {
		t.Errorf("before %v, after %v: an old one ended before a new one was healthy", keys(before), after)
	}
	s.answers(t, "pace", 1)
}

// stale is a plan that something has come before.
func (s *shop) stale(t *testing.T) {
	s.next(t, "anew")
	plan := s.TryIn(s.dir, "plan")
	index := regexp.MustCompile(`--check-index (\d+)`).FindStringSubmatch(plan.Stdout)
	if index == nil {
		t.Fatalf("the plan has no index:\n%s%s", plan.Stdout, plan.Stderr)
	}
	s.GantryIn(t, s.dir, "scale", "canary=3")
	result := s.TryIn(s.dir, "up", "--check-index", index[1])
	if result.Code == 0 || !strings.Contains(result.Stderr, "has changed since it was planned") {
		t.Errorf("up by a stale plan: %d %s", result.Code, result.Stderr)
	}
	if got := releases(s.of(t, "anew")); got[3] > 0 {
		t.Errorf("it was followed all the same: %v", got)
	}
}
