package cli_test

import (
	"context"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cli"
	"github.com/gantryd/gantry/internal/sockettest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gantry": func() {
			os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Options{
				In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: "1.2.3", Commit: "abc",
			}))
		},
	})
}

// Scripts hold commands with the output and exit codes that people and programs rely on. Each has a daemon of its own
// that is made up, see fake.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			f := newFake()
			host, stop, err := sockettest.Serve(f.mux())
			if err != nil {
				return err
			}
			env.Values["fake"] = f
			env.Defer(stop)
			env.Setenv("GANTRY_HOST", host)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("USER_ID", itoa(os.Getuid()))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"served": served,
			"exits":  exits,
			"forget": forget,
		},
	})
}

// served waits until the daemon has received calls: "served Watch Signal:SIGTERM".
func served(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value("fake").(*fake)
	for _, call := range args {
		limit := 10 * time.Second
		if neg {
			limit = 0 // What must not have happened is not waited for.
		}
		got := f.await(call, limit)
		if got == neg {
			ts.Fatalf("call %s: %v; calls were %v", call, got, f.seen())
		}
	}
}

// forget drops the calls so far, so that served waits for new ones.
func forget(ts *testscript.TestScript, _ bool, _ []string) {
	f := ts.Value("fake").(*fake)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = nil
}

// exits runs a command that must end with a code: "exits 2 gantry plan".
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if e, ok := err.(interface{ ExitCode() int }); ok {
		code = e.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func (f *fake) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle(gantryv1connect.NewAppServiceHandler(fakeApps{fake: f}))
	mux.Handle(gantryv1connect.NewOperationServiceHandler(fakeOperations{fake: f}))
	mux.Handle(gantryv1connect.NewClusterServiceHandler(fakeCluster{fake: f}))
	mux.Handle(gantryv1connect.NewInstanceServiceHandler(fakeInstances{fake: f}))
	mux.Handle(gantryv1connect.NewImageServiceHandler(fakeImages{fake: f}))
	mux.Handle(gantryv1connect.NewVolumeServiceHandler(fakeVolumes{fake: f}))
	mux.Handle(gantryv1connect.NewNetworkServiceHandler(fakeNetworks{fake: f}))
	mux.Handle(gantryv1connect.NewSecretServiceHandler(fakeFiles{fake: f, noun: "secret"}))
	mux.Handle(gantryv1connect.NewConfigServiceHandler(fakeFiles{fake: f, noun: "config"}))
	mux.Handle(gantryv1connect.NewSystemServiceHandler(fakeSystem{fake: f}))
	return mux
}
