package explain

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

const gib = 1 << 30

func nodes() []store.Object {
	return []store.Object{
		&gantryv1.Node{Meta: store.NewMeta("a"), Name: "n1"}, &gantryv1.NodeStatus{Meta: store.NewMeta("a"), State: "ready", NanoCpus: 4e9, Memory: 8 * gib},
		&gantryv1.Node{Meta: store.NewMeta("b"), Name: "n2", Availability: "drain"}, &gantryv1.NodeStatus{Meta: store.NewMeta("b"), State: "down", Memory: gib},
	}
}

func service(name string, spec *gantryv1.ServiceSpec) []store.Object {
	key := "p/a/" + name
	return []store.Object{
		&gantryv1.Service{Meta: store.NewMeta(key), Environment: "p", App: "a", Name: name, Release: 1, Replicas: 2, Spec: spec},
		&gantryv1.Release{Meta: store.NewMeta(key + "/00000001"), Service: key, Number: 1, Spec: spec},
	}
}

func instance(id, name, node string) *gantryv1.Instance {
	return &gantryv1.Instance{Meta: store.NewMeta(id), Environment: "p", App: "a", Service: name, Slot: 1, Release: 1, Node: node, Desired: gantryv1.Instance_DESIRED_RUNNING}
}

func TestExplain(t *testing.T) {
	spec := &gantryv1.ServiceSpec{
		Container: &gantryv1.ContainerSpec{Resources: &gantryv1.Resources{MemoryReservation: 5 * gib, NanoCpusReservation: 1e9}},
		Placement: &gantryv1.Placement{Constraints: []string{"node.hostname == n1"}},
	}
	objects := append(nodes(), service("db", spec)...)
	objects = append(objects, instance("i1", "db", "a"), instance("i2", "db", ""))
	got, err := Explain(store.Fixed(objects...), "p/a/db", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got.Mode != "replicated" || got.Wanted != 2 || got.Placed != 1 || len(got.Waiting) != 1 || len(got.Asks) != 3 {
		t.Errorf("%v", got)
	}
	if why := got.Waiting[0].Reason; why != "no node fits: 1 is drained, 1 lacks memory (needs 5 GiB, most free 3 GiB)" {
		t.Errorf("%s", why)
	}
	a, b := got.Nodes[0], got.Nodes[1]
	if a.Name != "n1" || a.Fits || a.Instances != 1 || a.FreeMemory != 3*gib || a.FreeCpus != 3e9 || strings.Join(a.Reasons, "; ") != "it lacks memory: needs 5 GiB, free 3 GiB of 8 GiB" {
		t.Errorf("%v", a)
	}
	if b.Fits || strings.Join(b.Reasons, "; ") != "it is drained; it does not meet node.hostname == n1; it lacks memory: needs 5 GiB, free 1 GiB of 1 GiB" {
		t.Errorf("%v", b)
	}
	if _, err := Explain(store.Fixed(), "p/a/web", time.Now()); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestExplainGlobal(t *testing.T) {
	objects := append(nodes(), service("agent", &gantryv1.ServiceSpec{Mode: "global", Container: &gantryv1.ContainerSpec{}})...)
	got, err := Explain(store.Fixed(append(objects, instance("i1", "agent", "a"))...), "p/a/agent", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got.Wanted != 1 || !got.Nodes[0].Fits || got.Nodes[1].Fits {
		t.Errorf("%v", got)
	}
}

func TestExplainJob(t *testing.T) {
	now := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	spec := &gantryv1.ServiceSpec{Mode: "replicated-job", Container: &gantryv1.ContainerSpec{}, Job: &gantryv1.JobSpec{Schedule: "0 3 * * *", TimeZone: "Europe/Berlin"}}
	job := &gantryv1.Job{Meta: store.NewMeta("p/a/backup"), Runs: []*gantryv1.JobRun{{Number: 1, State: "running", Completions: 4, Succeeded: 1}}}
	got, err := Explain(store.Fixed(append(append(nodes(), service("backup", spec)...), job)...), "p/a/backup", now)
	if err != nil {
		t.Fatal(err)
	}
	if want := timestamppb.New(time.Date(2026, 11, 22, 2, 0, 0, 0, time.UTC)); !got.NextStart.AsTime().Equal(want.AsTime()) || got.Wanted != 3 || len(got.Job.Runs) != 1 {
		t.Errorf("%v", got)
	}
}

func TestExplainARun(t *testing.T) {
	run := &gantryv1.Instance{Meta: store.NewMeta("x"), Environment: "p", Service: "shell", Node: "a", Desired: gantryv1.Instance_DESIRED_RUNNING,
		Spec: &gantryv1.ContainerSpec{Resources: &gantryv1.Resources{MemoryReservation: 5 * gib}}}
	got, err := Explain(store.Fixed(append(nodes(), run)...), "p//shell", time.Now())
	if err != nil || got.Placed != 1 || got.Mode != "" || got.Nodes[0].Instances != 1 || strings.Join(got.Asks, "; ") != "memory: 5 GiB" {
		t.Errorf("%v %v", got, err)
	}
}
