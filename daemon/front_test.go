package daemon

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/test/hostile"
)

// keeper makes the certificate of another machine of the cluster.
func keeper(t *testing.T, ca *identity.Authority, roots []byte, node string, role identity.Role) *identity.Keeper {
	t.Helper()
	key, request, err := identity.Request()
	check(t, err)
	cert, err := ca.Sign(request, node, role, "127.0.0.1", time.Hour)
	check(t, err)
	k, err := identity.NewKeeper(t.TempDir(), cert, key, roots)
	check(t, err)
	return k
}

// TestWhoCalls: what a machine may do follows from its role today, and not from its certificate.
func TestWhoCalls(t *testing.T) {
	ca, roots, _, err := identity.NewAuthority("test")
	check(t, err)
	m := newMachine(t, Config{Root: t.TempDir()})
	m.keeper = keeper(t, ca, roots, "own", identity.Server)
	check(t, m.heard(&gantryv1.NodeUpdate{Nodes: []*gantryv1.Node{
		{Meta: &gantryv1.Meta{Key: "s"}, Role: "server"}, {Meta: &gantryv1.Meta{Key: "demoted"}, Role: "node"},
	}}))
	f := &front{machine: m, role: &serverRole{moved: make(chan struct{})}, errors: connect.NewErrorWriter()}
	echo := func(w http.ResponseWriter, r *http.Request) {
		c, _ := identity.CallerFrom(r.Context())
		fmt.Fprint(w, c.Node)
	}
	mux := http.NewServeMux()
	mux.Handle("/any", f.from(anyRole, echo))
	mux.Handle("/servers", f.from(identity.Server, echo))
	s := httptest.NewUnstartedServer(mux)
	s.TLS, s.EnableHTTP2 = m.keeper.ServerTLS(), true
	s.StartTLS()
	defer s.Close()
	call := func(as, path, on string) string {
		t.Helper()
		c := keeper(t, ca, roots, as, identity.Server).Client(identity.AnyServer)
		defer c.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
		check(t, err)
		req.Header.Set(callerHeader, on)
		resp, err := c.Do(req)
		check(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		check(t, err)
		return string(b)
	}
	for _, c := range []struct{ as, path, on, want string }{
		{"s", "/servers", "", "s"},
		{"s", "/any", "n9", "n9"}, // a server passes a call of n9 on
		{"demoted", "/any", "s", "demoted"},
		{"demoted", "/servers", "", "is not a server"},
		// Only the leader may say that a machine is not part of the cluster, since that makes it stop what it runs.
		{"stranger", "/any", "", "does not lead"},
	} {
		if got := call(c.as, c.path, c.on); !strings.Contains(got, c.want) {
			t.Errorf("%s calls %s for %q: %s", c.as, c.path, c.on, got)
		}
	}
}

// TestNothingIsChangedWithoutALeader: what a server that does not lead stores is not guarded by the leader's epoch.
func TestNothingIsChangedWithoutALeader(t *testing.T) {
	reads := map[string]bool{"Status": true, "Version": true, "Info": true, "DiskUsage": true, "Environments": true}
	for procedure := range hostile.Methods() {
		r := httptest.NewRequest(http.MethodPost, procedure, nil)
		if aloneToo(r) && !reads[path.Base(procedure)] {
			t.Errorf("%s is answered by servers that do not lead", procedure)
		}
	}
}

// TestAMachineTellsItsOwnVersion: another server, which may be of another version, is not asked.
func TestAMachineTellsItsOwnVersion(t *testing.T) {
	r := newRig(t)
	r.serving.api = http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { t.Errorf("the leader is asked %s", req.URL.Path) })
	d := r.socket("api.sock")
	got, err := gantryv1connect.NewSystemServiceClient(d.Client, d.Base).Version(t.Context(), connect.NewRequest(&gantryv1.VersionRequest{}))
	check(t, err)
	if v := got.Msg.Version; v != r.front.role.d.Version.Version {
		t.Errorf("version %q", v)
	}
}

// TestANodeSaysThatItReachesNoServer: it runs what it ran, and whoever looks there learns that nobody decides about it.
func TestANodeSaysThatItReachesNoServer(t *testing.T) {
	r := newRig(t)
	m := r.front.machine
	check(t, m.update(func(rec *gantryv1.MachineRecord) { rec.Node.Role = string(identity.Node) }))
	says := func(want, hint string) {
		t.Helper()
		if err := r.front.unready(); !strings.Contains(err.Error(), want) || !strings.Contains(fault.HintOf(err), hint) {
			t.Errorf("it says %q (hint: %s), want %q (hint: %s)", err, fault.HintOf(err), want, hint)
		}
	}
	says("since gantryd was started reaches no server that leads", "gantry cluster status")
	check(t, m.heard(&gantryv1.NodeUpdate{Full: true}))
	says("servers answer at", "gantry node promote")
	m.loseLeader()
	says("since 20", "gantry cluster status, and gantry node ls (is "+m.Node().Name+" still")
	says("Z reaches no server that leads", "the log of gantryd")
}

// overtaken has a server that leads pass a call on to one that it took for the leader before, and returns its answer.
func overtaken(t *testing.T, r *rig, address string) string {
	t.Helper()
	w := httptest.NewRecorder()
	r.front.pass(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/call", strings.NewReader("{}")), address, "")
	return w.Body.String()
}

// TestACallToAFrozenLeaderEndsWhenAnotherLeads: the kernel of a frozen server takes connections, and nothing comes of them.
func TestACallToAFrozenLeaderEndsWhenAnotherLeads(t *testing.T) {
	r := newRig(t)
	frozen, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer frozen.Close()
	if got := overtaken(t, r, frozen.Addr().String()); !strings.Contains(got, "another one leads now") {
		t.Errorf("the call is answered %s", got)
	}
}

// TestACallToALeaderThatLivesIsNotCutOff: one that leads no longer ends the calls that it has.
func TestACallToALeaderThatLivesIsNotCutOff(t *testing.T) {
	r := newRig(t)
	asked := make(chan struct{}, 100)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/call" {
			asked <- struct{}{}
			w.WriteHeader(http.StatusNotFound)
			return
		}
		for range 2 {
			select {
			case <-asked:
			case <-req.Context().Done():
				return
			}
		}
		fmt.Fprint(w, "at last")
	}))
	s.TLS, s.EnableHTTP2 = keeper(t, r.ca, r.roots, aServer, identity.Server).ServerTLS(), true
	s.StartTLS()
	defer s.Close()
	if got := overtaken(t, r, s.Listener.Addr().String()); got != "at last" {
		t.Errorf("the call is answered %s", got)
	}
}
