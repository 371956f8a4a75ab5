// Package schedule_test drives placement and jobs through the command line, on machines of the lab.
package schedule_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

const patience = 2 * time.Minute

func machine(t *testing.T, flags ...string) *lab.Node {
	t.Helper()
	n := lab.Machines(t, 1).Node(0)
	if len(flags) > 0 {
		n.StopDaemon(t)
		n.SetFlags(flags...)
		n.StartDaemon(t)
	}
	n.ImportBusybox(t)
	return n
}

func explain(t *testing.T, n *lab.Node, dir, service string) *gantryv1.ExplainResponse {
	t.Helper()
	e := &gantryv1.ExplainResponse{}
	if err := protojson.Unmarshal([]byte(n.GantryIn(t, dir, "explain", service, "-o", "json")), e); err != nil {
		t.Fatal(err)
	}
	return e
}

// awaitRuns waits until the runs of a job are in these states.
func awaitRuns(t *testing.T, n *lab.Node, dir, job string, states ...string) *gantryv1.ExplainResponse {
	t.Helper()
	var e *gantryv1.ExplainResponse
	lab.Eventually(t, patience, job+" has run", func() error {
		e = explain(t, n, dir, job)
		var got []string
		for _, r := range e.GetJob().GetRuns() {
			got = append(got, r.State)
		}
		if !slices.Equal(got, states) {
			return fmt.Errorf("its runs are %v, not %v", e.GetJob().GetRuns(), states)
		}
		return nil
	})
	return e
}

func TestJobs(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: jobs
services:
  migrate:
    image: `+lab.Busybox+`
    command: sh -c 'echo migrating; sleep 1'
    deploy: {mode: replicated-job, replicas: 2}
  web:
    image: `+lab.Busybox+`
    command: sleep 1000
    depends_on: {migrate: {condition: service_completed_successfully}}
  flaky:
    image: `+lab.Busybox+`
    command: sh -c 'echo try >> /d/tries; test $$(wc -l < /d/tries) -ge 3'
    volumes: ["store:/d"]
    deploy: {mode: replicated-job}
    x-gantry: {job: {retries: 5}}
  backup:
    image: `+lab.Busybox+`
    command: echo saved
    deploy: {mode: global-job}
    x-gantry: {job: {schedule: "0 3 * * *", time_zone: Europe/Berlin}}
volumes: {store: {}}
`)
	n.GantryIn(t, dir, "up")
	for _, v := range n.AwaitReady(t, "web", 1) {
		for _, m := range n.Instances(t) {
			if m.Instance.Service == "migrate" && v.Instance.Meta.CreatedAt.AsTime().Before(m.Status.FinishedAt.AsTime()) {
				t.Errorf("web.1 was made before %s had ended", lab.Name(m))
			}
		}
	}
	if ps := n.GantryIn(t, dir, "ps", "-a"); strings.Count(ps, "Completed (0)") != 3 {
		t.Errorf("ps:\n%s", ps)
	}
	if logs := n.GantryIn(t, dir, "logs", "migrate"); strings.Count(logs, "migrating") != 2 {
		t.Errorf("logs:\n%s", logs)
	}
	e := awaitRuns(t, n, dir, "flaky", "succeeded")
	if r := e.Job.Runs[0]; r.Failures != 2 {
		t.Errorf("%d starts failed, not 2", r.Failures)
	}

	if e := explain(t, n, dir, "backup"); len(e.GetJob().GetRuns()) != 0 || e.NextStart == nil {
		t.Errorf("before its time: %v", e)
	}
	n.GantryIn(t, dir, "restart", "backup")
	awaitRuns(t, n, dir, "backup", "succeeded")

	// Another daemon goes on where this one was: nothing is run again.
	n.KillDaemon(t)
	n.StartDaemon(t)
	n.AwaitReady(t, "web", 1)
	awaitRuns(t, n, dir, "migrate", "succeeded")
	awaitRuns(t, n, dir, "backup", "succeeded")
	n.GantryIn(t, dir, "up") // and so does nothing that has not changed
	awaitRuns(t, n, dir, "migrate", "succeeded")
	n.GantryIn(t, dir, "down", "-v")
	if left := n.Instances(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestAJobThatFails(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: failing
services:
  task:
    image: `+lab.Busybox+`
    command: sh -c 'echo the table is locked; exit 3'
    deploy: {mode: replicated-job}
    x-gantry: {job: {retries: 1}}
  web:
    image: `+lab.Busybox+`
    command: sleep 1000
    depends_on: {task: {condition: service_completed_successfully}}
`)
	result := n.TryWithin(patience, dir, "up")
	if result.Code != 1 || !strings.Contains(result.Stderr, "exited with code 3, after 2 starts") || !strings.Contains(result.Stderr, "the table is locked") {
		t.Errorf("up: %d\n%s", result.Code, result.Stderr)
	}
	long := lab.Project(t, `
name: failing
services:
  task:
    image: `+lab.Busybox+`
    command: sleep 1000
    deploy: {mode: replicated-job}
    x-gantry: {job: {timeout: 2s}}
`)
	result = n.TryWithin(patience, long, "up")
	if result.Code != 1 || !strings.Contains(result.Stderr, "it has not ended within 2s") {
		t.Errorf("up: %d\n%s", result.Code, result.Stderr)
	}
}

func TestAJobIsStoppedAndStarted(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: long
services:
  task:
    image: `+lab.Busybox+`
    command: sleep 1000
    init: true
    deploy: {mode: replicated-job, replicas: 2}
`)
	n.GantryIn(t, dir, "up", "-d")
	n.AwaitReady(t, "task", 2)
	n.GantryIn(t, dir, "stop")
	awaitRuns(t, n, dir, "task", "stopped")
	if ps := n.GantryIn(t, dir, "ps"); strings.Contains(ps, "task") {
		t.Errorf("ps after the stop:\n%s", ps)
	}
	n.KillDaemon(t)
	n.StartDaemon(t)
	awaitRuns(t, n, dir, "task", "stopped")
	n.GantryIn(t, dir, "scale", "task=1", "-d")
	n.GantryIn(t, dir, "start", "-d") // without -d it waits for the job's end
	if e := awaitRuns(t, n, dir, "task", "stopped", "running"); e.Job.Runs[1].Completions != 1 {
		t.Errorf("%v", e.Job)
	}
	lab.Eventually(t, patience, "the new run's instance runs", func() error {
		if ps := n.GantryIn(t, dir, "ps"); strings.Count(ps, "task.1") != 1 || !strings.Contains(ps, "Up ") {
			return fmt.Errorf("%s", ps)
		}
		return nil
	})
	n.GantryIn(t, dir, "down")
	if left := n.Instances(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWhatFitsNowhere(t *testing.T) {
	n := machine(t, "--device", "gpu=1")
	dir := lab.Project(t, `
name: much
services:
  big:
    image: `+lab.Busybox+`
    command: sleep 1000
    deploy: {resources: {reservations: {memory: 900000g}}}
  first:
    image: `+lab.Busybox+`
    command: sleep 1000
    deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: gpu, value: 1}}]}}}
`)
	n.GantryIn(t, dir, "up", "-d")
	n.AwaitReady(t, "first", 1)
	lab.Eventually(t, patience, "ps says why", func() error {
		if ps := n.GantryIn(t, dir, "ps", "--no-trunc"); !strings.Contains(ps, "Pending: no node fits: 1 lacks memory (needs 878.9 TiB") {
			return fmt.Errorf("%s", ps)
		}
		return nil
	})
	if out := n.GantryIn(t, dir, "explain", "big"); !strings.Contains(out, "big.1 waits") || !strings.Contains(out, "no: it lacks memory") {
		t.Errorf("explain:\n%s", out)
	}
	if e := explain(t, n, dir, "first"); strings.Join(e.Nodes[0].Reasons, "") != "it lacks gpu: needs 1, free 0 of 1" {
		t.Errorf("%v", e)
	}
	result := n.TryWithin(patience, dir, "up", "--timeout", "3s")
	if result.Code != 1 || !strings.Contains(result.Stderr, "no node fits") {
		t.Errorf("up: %d\n%s", result.Code, result.Stderr)
	}
}

// where counts a service's instances by node name.
func where(t *testing.T, n *lab.Node, service string) map[string]int {
	t.Helper()
	names := map[string]string{}
	machines, err := n.Machines()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		names[m.Node.Meta.Key] = m.Node.Name
	}
	out := map[string]int{}
	for _, v := range n.Instances(t) {
		if v.Instance.Service == service && v.Instance.Desired != gantryv1.Instance_DESIRED_REMOVED {
			out[names[v.Instance.Node]]++
		}
	}
	return out
}

func text(v any) string {
	b, _ := json.Marshal(v) // maps of numbers always have a form
	return string(b)
}

func TestOverThreeMachines(t *testing.T) {
	c := lab.Cluster(t, 3)
	n := c.Node(0)
	for _, m := range c.Nodes() {
		m.ImportBusybox(t)
	}
	for i, m := range c.Nodes() {
		n.Gantry(t, "node", "label", m.Name(), fmt.Sprintf("rack=r%d", i/2+1))
	}
	dir := lab.Project(t, `
name: three
services:
  web:
    image: `+lab.Busybox+`
    command: sleep 1000
    deploy: {replicas: 4, placement: {preferences: [{spread: node.labels.rack}]}}
  one:
    image: `+lab.Busybox+`
    command: sleep 1000
    deploy: {replicas: 2, placement: {constraints: [node.labels.rack == r2]}}
  agent:
    image: `+lab.Busybox+`
    command: sleep 1000
    deploy: {mode: global}
  data:
    image: `+lab.Busybox+`
    command: sleep 1000
    volumes: ["store:/d"]
  reader:
    image: `+lab.Busybox+`
    command: sleep 1000
    volumes: ["store:/d"]
  everywhere:
    image: `+lab.Busybox+`
    command: hostname
    deploy: {mode: global-job}
volumes: {store: {}}
`)
	n.GantryIn(t, dir, "up")
	a, b, last := c.Node(0).Name(), c.Node(1).Name(), c.Node(2).Name()
	if got, want := text(where(t, n, "web")), text(map[string]int{a: 1, b: 1, last: 2}); got != want {
		t.Errorf("web: %s, want %s", got, want)
	}
	if got, want := text(where(t, n, "one")), text(map[string]int{last: 2}); got != want {
		t.Errorf("one: %s, want %s", got, want)
	}
	each := text(map[string]int{a: 1, b: 1, last: 1})
	if got := text(where(t, n, "agent")); got != each {
		t.Errorf("agent: %s", got)
	}
	if got := text(where(t, n, "everywhere")); got != each {
		t.Errorf("everywhere: %s", got)
	}
	if data, reader := text(where(t, n, "data")), text(where(t, n, "reader")); data != reader {
		t.Errorf("the data is on %s, its reader on %s", data, reader)
	}
	n.Gantry(t, "node", "drain", last)
	lab.Eventually(t, patience, "one waits and says why", func() error {
		if ps := n.GantryIn(t, dir, "ps", "--no-trunc"); !strings.Contains(ps, "2 do not meet the constraints, 1 is drained") {
			return fmt.Errorf("%s", ps)
		}
		return nil
	})
	n.Gantry(t, "node", "activate", last)
	n.AwaitReady(t, "one", 2)
}
