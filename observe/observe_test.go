package observe_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/tally"
	"github.com/gantryd/gantry/observe"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/storetest"
)

// scrape reads /metrics as Prometheus does.
func scrape(t *testing.T, m ...*observe.Metrics) string {
	t.Helper()
	h := httptest.NewServer(observe.Handler(func() []*observe.Metrics { return m }))
	defer h.Close()
	resp, err := http.Get(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	return string(b)
}

// lines has the test fail for each line that is not among the metrics.
func lines(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, line := range want {
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(line) + `$`).MatchString(text) {
			t.Errorf("no line %q", line)
		}
	}
}

func TestPartsArePublished(t *testing.T) {
	m := observe.New()
	var c tally.Counter
	var g tally.Gauge
	var l tally.Latency
	m.Count("things_total", "Things.", &c)
	m.Level("queue", "What waits.", &g)
	m.Time("pass_seconds", "Passes.", &l)
	m.Counts("questions_total", "Questions.", "outcome", map[string]*tally.Counter{"answered": &c, "failed": {}})
	m.Levels("phases", "Instances.", "phase", func() map[string]int { return map[string]int{"running": 2} })
	process := observe.New()
	process.Process("1.2.3")
	c.Add(3)
	g.Set(5)
	l.Observe(2 * time.Millisecond)
	l.Observe(2 * time.Hour)
	lines(t, scrape(t, m, process), `gantry_things_total 3`, `# TYPE gantry_questions_total counter`, `gantry_questions_total{outcome="answered"} 3`,
		`gantry_questions_total{outcome="failed"} 0`, `gantry_phases{phase="running"} 2`, `gantry_queue 5`, `gantry_pass_seconds_bucket{le="0.001"} 0`,
		`gantry_pass_seconds_bucket{le="0.0025"} 1`, `gantry_pass_seconds_bucket{le="+Inf"} 2`, `gantry_pass_seconds_count 2`,
		`gantry_info{version="1.2.3"} 1`)
}

func TestTwoDaemonsOfAProcessCountApart(t *testing.T) {
	var one, two tally.Counter
	a, b := observe.New(), observe.New()
	a.Count("things_total", "Things.", &one)
	b.Count("things_total", "Things.", &two)
	one.Add(1)
	lines(t, scrape(t, a), `gantry_things_total 1`)
	lines(t, scrape(t, b), `gantry_things_total 0`)
}

func TestTheStateAndItsLibraryArePublished(t *testing.T) {
	st := storetest.New(t)
	err := st.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, &gantryv1.Node{Meta: store.NewMeta("n1")})
		store.Put(tx, &gantryv1.Node{Meta: store.NewMeta("n2")})
		store.Put(tx, &gantryv1.Job{Meta: store.NewMeta("p/a/task"), Runs: []*gantryv1.JobRun{{State: "failed"}, {State: "failed"}, {State: "running"}}})
		for _, id := range []string{"a", "b", "c"} {
			store.Put(tx, &gantryv1.Instance{Meta: store.NewMeta(id)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	st.Observe([]store.Object{
		&gantryv1.InstanceStatus{Meta: store.NewMeta("a"), Phase: gantryv1.InstanceStatus_PHASE_RUNNING},
		&gantryv1.InstanceStatus{Meta: store.NewMeta("aa"), Phase: gantryv1.InstanceStatus_PHASE_RUNNING}, // of none that there is
		&gantryv1.InstanceStatus{Meta: store.NewMeta("c"), Phase: gantryv1.InstanceStatus_PHASE_EXITED},
		&gantryv1.NodeStatus{Meta: store.NewMeta("n1"), State: "down"},
	}, nil)
	m := observe.New()
	m.Process("1")
	m.State(st)
	if text := scrape(t, m); strings.Contains(text, "etcd_") {
		t.Error("a machine that is no server tells of etcd")
	}
	m.Etcd()
	text := scrape(t, m, observe.New())
	lines(t, text, `gantry_cluster_instances{phase="running"} 1`, `gantry_cluster_instances{phase="exited"} 1`, `gantry_cluster_instances{phase="unspecified"} 1`,
		`gantry_cluster_job_runs{state="failed"} 2`, `gantry_cluster_job_runs{state="running"} 1`, `gantry_store_objects{kind="job"} 1`,
		`gantry_cluster_nodes{state="down"} 1`, `gantry_cluster_nodes{state="unknown"} 1`, `gantry_store_objects{kind="instance"} 3`, `gantry_cluster_unplaced_instances 3`)
	for _, family := range []string{"etcd_disk_wal_fsync_duration_seconds", "go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(text, "\n# TYPE "+family+" ") {
			t.Errorf("no %s", family)
		}
	}
	if strings.Count(text, "\n# TYPE go_goroutines ") != 1 {
		t.Error("the figures of Go are there more than once")
	}
}

// volumes refuses to remove and lists nothing.
type volumes struct {
	gantryv1connect.UnimplementedVolumeServiceHandler
}

func (volumes) List(context.Context, *connect.Request[gantryv1.ListVolumesRequest]) (*connect.Response[gantryv1.ListVolumesResponse], error) {
	return connect.NewResponse(&gantryv1.ListVolumesResponse{}), nil
}

func (volumes) Remove(context.Context, *connect.Request[gantryv1.VolumeTarget]) (*connect.Response[gantryv1.RemoveVolumeResponse], error) {
	return nil, fault.New(fault.Conflict, "it is in use")
}

func TestCallsAreCountedByHowTheyEnded(t *testing.T) {
	m := observe.New()
	_, handler := gantryv1connect.NewVolumeServiceHandler(volumes{}, connect.WithInterceptors(m.API()))
	h := httptest.NewServer(handler)
	defer h.Close()
	c := gantryv1connect.NewVolumeServiceClient(h.Client(), h.URL)
	if _, err := c.List(t.Context(), connect.NewRequest(&gantryv1.ListVolumesRequest{})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Remove(t.Context(), connect.NewRequest(&gantryv1.VolumeTarget{})); err == nil {
		t.Fatal("it was not refused")
	}
	lines(t, scrape(t, m), `gantry_api_requests_total{code="ok",procedure="VolumeService/List"} 1`,
		`gantry_api_requests_total{code="failed_precondition",procedure="VolumeService/Remove"} 1`,
		`gantry_api_request_seconds_count{procedure="VolumeService/List"} 1`, `gantry_api_requests_running{procedure="VolumeService/List"} 0`)
}

// BenchmarkScrape asks for the figures of a cluster with 100,000 instances.
func BenchmarkScrape(b *testing.B) {
	const instances, chunk = 100_000, 4000
	st := storetest.New(b)
	for begin := 0; begin < instances; begin += chunk {
		var said []store.Object
		err := st.Update(b.Context(), func(tx *store.Tx) error {
			said = nil
			for n := begin; n < begin+chunk; n++ {
				key := fmt.Sprintf("i%06d", n)
				store.Put(tx, &gantryv1.Instance{Meta: store.NewMeta(key), Node: "n1"})
				said = append(said, &gantryv1.InstanceStatus{Meta: store.NewMeta(key), Phase: gantryv1.InstanceStatus_PHASE_RUNNING})
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		st.Observe(said, nil)
	}
	m := observe.New()
	m.State(st)
	h := observe.Handler(func() []*observe.Metrics { return []*observe.Metrics{m} })
	for b.Loop() {
		answer := httptest.NewRecorder()
		if h.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil)); answer.Code != http.StatusOK {
			b.Fatal(answer.Body)
		}
	}
}
