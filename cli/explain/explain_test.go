package explain_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cli/explain"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/internal/sockettest"
)

// daemon answers for one service of the app shop and one instance of `gantry run`.
type daemon struct{}

func (daemon) Explain(_ context.Context, r *connect.Request[gantryv1.ExplainRequest]) (*connect.Response[gantryv1.ExplainResponse], error) {
	now := time.Now()
	switch m := r.Msg; m.Environment + "/" + m.App + "/" + m.Service {
	case "production/shop/db":
		return connect.NewResponse(&gantryv1.ExplainResponse{
			Service: "production/shop/db", Mode: "replicated-job", Wanted: 1, Asks: []string{"memory: 4 GiB"},
			Nodes: []*gantryv1.NodeVerdict{
				{Name: "n1", Fits: true, Instances: 2, FreeCpus: 15e8, FreeMemory: 8 << 30},
				{Name: "n2", Reasons: []string{"it is drained", "it lacks memory"}},
			},
			Waiting: []*gantryv1.WaitingInstance{{Name: "db.1", Reason: "no node fits: 1 is drained", Since: timestamppb.New(now.Add(-time.Hour))}},
			Job: &gantryv1.Job{Runs: []*gantryv1.JobRun{
				{Number: 1, State: "failed", Completions: 2, Cause: "schedule", Error: "db.1 exited with code 3",
					StartedAt: timestamppb.New(now.Add(-time.Hour)), FinishedAt: timestamppb.New(now.Add(-50 * time.Minute))},
				{Number: 2, State: "skipped", Cause: "schedule", Error: "run 1 had not ended"},
			}},
		}), nil
	case "production//shell":
		return connect.NewResponse(&gantryv1.ExplainResponse{Service: "production//shell", Placed: 1}), nil
	}
	return nil, wire.Encode(fault.New(fault.NotFound, "there is no service %q", r.Msg.Service).WithHint("gantry ps lists what there is"))
}

func serve(t *testing.T) (host string) {
	t.Helper()
	_, h := gantryv1connect.NewExplainServiceHandler(daemon{})
	host, stop, err := sockettest.Serve(h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return host
}

// explained runs the command and returns what it printed.
func explained(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s := &verb.Session{Out: out, Err: os.Stderr, Host: serve(t), Environment: "production"}
	defer s.Close()
	cmd := explain.Command(s)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	failed := cmd.ExecuteContext(t.Context())
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b), failed
}

func TestExplain(t *testing.T) {
	const want = `production/shop/db, replicated-job: 0 of 1 placed
db.1 waits (since 1 hour ago): no node fits: 1 is drained
asks for:
  memory: 4 GiB
NODE   HAS   FREE CPU   FREE MEMORY   ONE MORE
n1     2     1.5        8GiB          yes
n2     0     0          0B            no: it is drained; it lacks memory
RUN   STATE     DONE   STARTED      TOOK         CAUSE      WHY
2     skipped   0/0    -            -            schedule   run 1 had not ended
1     failed    0/2    1 hour ago   10 minutes   schedule   db.1 exited with code 3
`
	got, err := explained(t, "shop/db")
	if err != nil || got != want {
		t.Errorf("%v\n%s", err, got)
	}
	if got, err := explained(t, "-p", "shop", "shell"); err != nil || !strings.HasPrefix(got, "shell, of gantry run: 1 placed\n") {
		t.Errorf("%v\n%s", err, got)
	}
	if got, err := explained(t, "-p", "shop", "db", "-o", "json"); err != nil || !strings.Contains(got, `"service": "production/shop/db"`) {
		t.Errorf("%v\n%s", err, got)
	}
	if _, err := explained(t, "shop/nothing"); !fault.Is(err, fault.NotFound) || fault.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
}
