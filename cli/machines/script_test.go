package machines_test

import (
	"context"
	"debug/elf"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/rogpeppe/go-internal/testscript"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cli"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/internal/sockettest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gantry": func() {
			os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Options{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: "1.2.3"}))
		},
	})
}

// Scripts run against a server that is made up, and a program ssh that runs commands here, in a directory that stands for the
// other machine.
func TestScripts(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	gantry, err := exec.LookPath("gantry")
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "linux" {
		t.Skip("the programs to copy are for Linux")
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			f := &fake{}
			host, stop, err := sockettest.Serve(f.mux())
			if err != nil {
				return err
			}
			env.Values["fake"] = f
			env.Defer(stop)
			env.Setenv("GANTRY_HOST", host)
			env.Setenv("PATH", filepath.Join(env.WorkDir, "bin")+":"+env.Getenv("PATH"))
			env.Setenv("ONLY_GANTRY", filepath.Dir(gantry))
			env.Setenv("SELF", self) // a program for this processor
			env.Setenv("MACHINE", kindOf(self))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"served": served},
	})
}

// kindOf is what uname -m says where a program runs.
func kindOf(program string) string {
	f, err := elf.Open(program)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	return map[elf.Machine]string{elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "aarch64"}[f.Machine]
}

// served tells whether the server was called so: "served 'RevokeToken t1'".
func served(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value("fake").(*fake)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range args {
		if got := strings.Contains("\n"+strings.Join(f.calls, "\n")+"\n", "\n"+a+"\n"); got == neg {
			ts.Fatalf("call %s: %v; calls were %q", a, got, f.calls)
		}
	}
}

// fake is a cluster c1 in which machines become ready when they have been asked about twice.
type fake struct {
	mu    sync.Mutex
	calls []string
	asked int
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

type fakeCluster struct {
	*fake
	gantryv1connect.UnimplementedClusterServiceHandler
}

type fakeNodes struct {
	*fake
	gantryv1connect.UnimplementedNodeAdminServiceHandler
}

func (f *fake) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle(gantryv1connect.NewClusterServiceHandler(fakeCluster{fake: f}))
	mux.Handle(gantryv1connect.NewNodeAdminServiceHandler(fakeNodes{fake: f}))
	return mux
}

func (f fakeCluster) Configure(_ context.Context, r *connect.Request[gantryv1.ConfigureClusterRequest]) (*connect.Response[gantryv1.Cluster], error) {
	f.note("Configure %d copies", r.Msg.ImageCopies)
	return connect.NewResponse(&gantryv1.Cluster{}), nil
}

func (f fakeCluster) Status(context.Context, *connect.Request[gantryv1.ClusterStatusRequest]) (*connect.Response[gantryv1.ClusterStatusResponse], error) {
	return connect.NewResponse(&gantryv1.ClusterStatusResponse{Id: "c1", Leader: "n1", Members: []*gantryv1.MemberStatus{
		{Node: "n1", Reachable: true}, {Node: "n2", Reachable: true},
	}}), nil
}

func (f fakeCluster) CreateToken(_ context.Context, r *connect.Request[gantryv1.CreateTokenRequest]) (*connect.Response[gantryv1.CreateTokenResponse], error) {
	f.note("CreateToken %s %s", r.Msg.Role, r.Msg.Life.AsDuration())
	return connect.NewResponse(&gantryv1.CreateTokenResponse{Id: "t1", Token: "gantry-" + r.Msg.Role + "-secret", Address: "10.0.0.1:7450"}), nil
}

func (f fakeCluster) ListTokens(context.Context, *connect.Request[gantryv1.ListTokensRequest]) (*connect.Response[gantryv1.ListTokensResponse], error) {
	out := &gantryv1.ListTokensResponse{}
	for id, role := range map[string]string{"n1": "node", "n2": "node", "gone": "node", "s1": "server", "stuck": "server"} {
		out.Tokens = append(out.Tokens, &gantryv1.JoinToken{Meta: &gantryv1.Meta{Key: id}, Role: role})
	}
	return connect.NewResponse(out), nil
}

func (f fakeCluster) RevokeToken(_ context.Context, r *connect.Request[gantryv1.RevokeTokenRequest]) (*connect.Response[gantryv1.RevokeTokenResponse], error) {
	f.note("RevokeToken %s", r.Msg.Id)
	switch r.Msg.Id {
	case "gone": // another has revoked it meanwhile
		return nil, wire.Encode(fault.New(fault.NotFound, "there is no token %q", r.Msg.Id))
	case "stuck":
		return nil, wire.Encode(fault.New(fault.Unavailable, "the cluster has no leader now"))
	}
	return connect.NewResponse(&gantryv1.RevokeTokenResponse{}), nil
}

func (f fakeNodes) Get(_ context.Context, r *connect.Request[gantryv1.NodeRequest]) (*connect.Response[gantryv1.NodeView], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Msg.Node == "gone" {
		return nil, wire.Encode(fault.New(fault.NotFound, "there is no node %q", r.Msg.Node))
	}
	f.asked++
	v := &gantryv1.NodeView{Node: &gantryv1.Node{Meta: &gantryv1.Meta{Key: r.Msg.Node}}}
	if f.asked > 1 {
		v.Status = &gantryv1.NodeStatus{State: "ready"}
	}
	return connect.NewResponse(v), nil
}

func (f fakeNodes) SetAvailability(_ context.Context, r *connect.Request[gantryv1.SetAvailabilityRequest]) (*connect.Response[gantryv1.NodeView], error) {
	if r.Msg.Node != "alpha" {
		return nil, wire.Encode(fault.New(fault.NotFound, "there is no node %q", r.Msg.Node).WithHint("gantry node ls"))
	}
	v := &gantryv1.NodeView{
		Node:   &gantryv1.Node{Name: "alpha", Role: "node", Availability: r.Msg.Availability},
		Status: &gantryv1.NodeStatus{State: "ready"},
		Pinned: []*gantryv1.PinnedInstance{
			{Instance: "production/shop/db.1", Volume: "production/shop/data"}, {Instance: "production/box"},
		},
	}
	return connect.NewResponse(v), nil
}
