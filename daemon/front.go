package daemon

import (
	"context"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/server/caller"
	"github.com/gantryd/gantry/server/machines"
	"github.com/gantryd/gantry/store"
)

// front takes what comes in on this machine and passes it to whoever can answer: this machine's server if it leads, else the
// leader.
type front struct {
	machine  *machine
	role     *serverRole
	node     http.Handler // what servers call on this node
	blobs    http.Handler // parts of images, for other nodes
	metrics  http.Handler
	recovery http.Handler
	alone    http.Handler // what a machine answers of itself, whoever leads
	remote   http.RoundTripper
	gate     *gate // before what anybody may send
	guests   guests
	errors   *connect.ErrorWriter
}

const (
	// proxied comes before the path of a call of an operator that one server passes to the leader.
	proxied = "/api"
	// callerHeader names the machine that a server passes a call on for.
	callerHeader = "Gantry-Caller"
	// leaderPatience is how long a call waits for a leader: an election takes about two seconds.
	leaderPatience = 8 * time.Second
)

func newFront(m *machine, role *serverRole, node http.Handler, images *peer.Exchange, metrics http.Handler) *front {
	f := &front{
		machine: m, role: role, node: node, metrics: metrics, remote: m.keeper.Client(identity.AnyServer).Transport, errors: connect.NewErrorWriter(),
		gate: newGate(),
	}
	if images != nil {
		f.blobs = images.Handler()
	}
	_, f.recovery = gantryv1connect.NewRecoveryServiceHandler(&recovery{role}, server.AuditedOptions(role.d.Logger)...)
	_, f.alone = gantryv1connect.NewSystemServiceHandler(&nodeSystem{front: f, local: role.local, version: role.d.Version}, server.HandlerOptions()...)
	return f
}

// nodeSystem is SystemService on a machine without a server that works, and says of each machine which version it runs: it
// speaks for itself alone.
type nodeSystem struct {
	*front
	local   server.Node
	version *gantryv1.VersionResponse
}

// Version implements the API.
func (s *nodeSystem) Version(context.Context, *connect.Request[gantryv1.VersionRequest]) (*connect.Response[gantryv1.VersionResponse], error) {
	return connect.NewResponse(s.version), nil
}

// Info implements the API.
func (s *nodeSystem) Info(ctx context.Context, req *connect.Request[gantryv1.InfoRequest]) (*connect.Response[gantryv1.InfoResponse], error) {
	return s.local.Service.Info(ctx, req)
}

// DiskUsage implements the API.
func (s *nodeSystem) DiskUsage(ctx context.Context, req *connect.Request[gantryv1.DiskUsageRequest]) (*connect.Response[gantryv1.DiskUsageResponse], error) {
	return s.local.Service.DiskUsage(ctx, req)
}

// Environments implements the API.
func (s *nodeSystem) Environments(context.Context, *connect.Request[gantryv1.EnvironmentsRequest]) (*connect.Response[gantryv1.EnvironmentsResponse], error) {
	return nil, s.unready()
}

// SetEnvironment implements the API.
func (s *nodeSystem) SetEnvironment(context.Context, *connect.Request[gantryv1.SetEnvironmentRequest]) (*connect.Response[gantryv1.Environment], error) {
	return nil, s.unready()
}

func (f *front) fail(w http.ResponseWriter, r *http.Request, err error) {
	if werr := f.errors.Write(w, r, wire.Encode(err)); werr != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// Operators serves the Unix socket.
func (f *front) Operators() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == metricsPath {
			f.metrics.ServeHTTP(w, r) // of this machine, whoever leads
			return
		}
		if strings.HasPrefix(r.URL.Path, "/"+gantryv1connect.RecoveryServiceName+"/") {
			f.recovery.ServeHTTP(w, r)
			return
		}
		if r.URL.Path == gantryv1connect.SystemServiceVersionProcedure || !f.machine.isServer() && isSystem(r) {
			f.alone.ServeHTTP(w, r)
			return
		}
		if !f.machine.isServer() {
			f.fail(w, r, f.unready())
			return
		}
		f.lead(w, r, func(s *serving) http.Handler { return s.api }, proxied)
	})
}

// unready is why this machine alone cannot answer.
func (f *front) unready() error {
	if err := f.machine.outlived(time.Now()); err != nil {
		return err
	}
	if f.machine.isServer() {
		return f.role.unready()
	}
	servers := strings.Join(f.machine.Servers(), ", ")
	if since, ok := f.machine.hasSession(); !ok {
		return fault.New(fault.Unavailable, "this machine only runs instances, and since %s reaches no server that leads; it tries %s", since, servers).
			WithHint("what it runs goes on; does it reach them? there: gantry cluster status, and gantry node ls (is %s still one of them?); here: the log of gantryd",
				f.machine.Node().Name)
	}
	return fault.New(fault.Unavailable, "this machine only runs instances; servers answer at %s", servers).
		WithHint("run gantry on a server, or make this machine one: gantry node promote %s", f.machine.Node().Name)
}

// lead answers on the leader, or passes the call to it under the prefix.
func (f *front) lead(w http.ResponseWriter, r *http.Request, pick func(*serving) http.Handler, prefix string) {
	wait := leaderPatience
	if aloneToo(r) {
		wait = sessionPatience
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	for {
		s, moved := f.role.current()
		switch {
		case s != nil && s.Leading() && s.member.Confirm(ctx) == nil:
			pick(s).ServeHTTP(w, r)
			return
		case s != nil && s.LeaderAddress() != "":
			f.pass(w, r, s.LeaderAddress(), prefix)
			return
		}
		select {
		case <-moved:
		case <-time.After(leaderPoll):
		case <-ctx.Done():
			f.leaderless(w, r, s, pick)
			return
		}
	}
}

const leaderPoll = 50 * time.Millisecond

// aloneToo reports whether a server answers a call itself when nobody leads. None of these changes the state.
func aloneToo(r *http.Request) bool {
	switch r.URL.Path {
	case gantryv1connect.SystemServiceSetEnvironmentProcedure:
		return false
	case gantryv1connect.ClusterServiceStatusProcedure:
		return true
	}
	return isSystem(r)
}

func isSystem(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/"+gantryv1connect.SystemServiceName+"/")
}

// leaderless answers what a server alone can, while nobody leads.
func (f *front) leaderless(w http.ResponseWriter, r *http.Request, s *serving, pick func(*serving) http.Handler) {
	switch {
	case s == nil && isSystem(r):
		f.alone.ServeHTTP(w, r)
	case s == nil && aloneToo(r):
		h, err := f.role.lonely(r.Context())
		if err != nil {
			f.fail(w, r, err)
			return
		}
		h.ServeHTTP(w, r)
	case s == nil:
		f.fail(w, r, f.unready())
	case aloneToo(r):
		pick(s).ServeHTTP(w, r)
	default:
		err := s.noLeader()
		if ended := f.machine.outlived(time.Now()); ended != nil {
			err = ended
		}
		f.fail(w, r, err)
	}
}

// pass sends a call on to another server.
func (f *front) pass(w http.ResponseWriter, r *http.Request, address, prefix string) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	answered := make(chan struct{})
	go f.overtake(ctx, cancel, address, answered)
	p := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: "https", Host: address})
			pr.Out.URL.Path = prefix + pr.In.URL.Path
			pr.Out.Host = address
			pr.Out.Header.Del(callerHeader)
			if c, ok := identity.CallerFrom(pr.In.Context()); ok {
				pr.Out.Header.Set(callerHeader, c.Node)
			}
			caller.Forward(pr.In.Context(), pr.Out.Header, f.machine.Node().Meta.Key)
		},
		Transport: f.remote, FlushInterval: -1,
		ModifyResponse: func(res *http.Response) error {
			close(answered)
			res.Body = answer{res.Body, r.Body}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if cause := context.Cause(ctx); fault.Is(cause, fault.Unavailable) {
				f.fail(w, r, cause)
				return
			}
			f.fail(w, r, fault.Wrap(fault.Unavailable, err, "the leader at %s does not answer", address).WithHint("try again; gantry cluster status"))
		},
	}
	p.ServeHTTP(w, r.WithContext(ctx))
}

// overtake gives a call to the server that led up when another leads and the one called is silent. It returns when the call is
// answered or ends.
func (f *front) overtake(ctx context.Context, cancel context.CancelCauseFunc, address string, answered <-chan struct{}) {
	look := time.NewTicker(overtakenPoll)
	defer look.Stop()
	for alive := true; alive; {
		select {
		case <-look.C:
			alive = !f.anotherLeads(address) || f.lives(ctx, address)
		case <-answered:
			return
		case <-ctx.Done():
			return
		}
	}
	select {
	case <-answered:
	default:
		cancel(fault.New(fault.Unavailable, "the server at %s, which led, does not answer, and another one leads now", address).
			WithHint("try again; it may have done what was asked: look first, if that must not be done twice"))
	}
}

// anotherLeads reports whether this server knows of a leader that is not at the address.
func (f *front) anotherLeads(address string) bool {
	s, _ := f.role.current()
	if s == nil || s.Leading() {
		return s != nil
	}
	leader := s.LeaderAddress()
	return leader != "" && leader != address
}

// lives reports whether a server answers at all: one that leads no longer may still have calls to end.
func (f *front) lives(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, livesPatience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/", nil)
	if err != nil {
		return false
	}
	resp, err := f.remote.RoundTrip(r)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil
}

const (
	overtakenPoll = 250 * time.Millisecond
	livesPatience = time.Second
)

// answer is the body of a response whose end is that of the request too. Without it, a stream that the leader ends while the
// caller has more to say would last as long as the caller says nothing.
type answer struct {
	io.ReadCloser
	request io.Closer
}

// Close is part of io.ReadCloser.
func (a answer) Close() error {
	_ = a.request.Close()
	return a.ReadCloser.Close()
}

// Machines serves the port that machines of the cluster reach one another at.
func (f *front) Machines() http.Handler {
	mux := http.NewServeMux()
	of := func(name string) string { return "/" + name + "/" }
	mux.HandleFunc(of(gantryv1connect.JoinServiceName), f.guard(f.onLeader))
	mux.Handle(of(gantryv1connect.MachineServiceName), f.from(anyRole, f.onLeader))
	mux.Handle(of(gantryv1connect.NodeImageServiceName), f.from(anyRole, f.onLeader))
	mux.Handle(peer.Path, f.from(anyRole, f.blobs.ServeHTTP))
	mux.Handle(of(gantryv1connect.NodeSessionServiceName), f.from(anyRole, f.session))
	mux.Handle(of(gantryv1connect.NodeServiceName), f.from(identity.Server, f.node.ServeHTTP))
	mux.Handle(of(gantryv1connect.ImageServiceName), f.from(identity.Server, f.node.ServeHTTP))
	mux.Handle(metricsPath, f.from(anyRole, f.metrics.ServeHTTP))
	mux.Handle(proxied+"/", f.from(identity.Server, func(w http.ResponseWriter, r *http.Request) {
		http.StripPrefix(proxied, caller.Forwarded(http.HandlerFunc(f.final))).ServeHTTP(w, r)
	}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f.fail(w, r, fault.New(fault.NotFound, "there is nothing at %s", r.URL.Path))
	})
	return mux
}

// onLeader answers what machines ask of the leader.
func (f *front) onLeader(w http.ResponseWriter, r *http.Request) {
	f.lead(w, r, func(s *serving) http.Handler { return s.between }, "")
}

// final answers a call that another server has passed on. It is not passed on again: the two could disagree for ever.
func (f *front) final(w http.ResponseWriter, r *http.Request) {
	if s, _ := f.role.current(); s != nil && s.Leading() && s.member.Confirm(r.Context()) == nil {
		s.api.ServeHTTP(w, r)
		return
	}
	f.fail(w, r, fault.New(fault.Unavailable, "the lead has just moved to another server").WithHint("try again"))
}

// Local serves this machine's own node role by root's socket: it is trusted as the machine itself.
func (f *front) Local() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The process at the other end is this daemon, not a user.
		r = r.WithContext(identity.WithCaller(caller.With(r.Context(), caller.Caller{}), identity.Caller{
			Node: f.machine.Node().Meta.Key, Role: identity.Role(f.machine.Node().Role),
		}))
		switch {
		case strings.HasPrefix(r.URL.Path, "/"+gantryv1connect.NodeSessionServiceName+"/"):
			f.session(w, r)
		case strings.HasPrefix(r.URL.Path, "/"+gantryv1connect.MachineServiceName+"/"),
			strings.HasPrefix(r.URL.Path, "/"+gantryv1connect.NodeImageServiceName+"/"):
			f.onLeader(w, r)
		default:
			f.node.ServeHTTP(w, r)
		}
	})
}

// session serves the sessions of nodes, which only the leader has. While nobody leads they wait: it may be this server.
func (f *front) session(w http.ResponseWriter, r *http.Request) {
	wait := time.NewTimer(sessionPatience)
	defer wait.Stop()
	for {
		s, moved := f.role.current()
		switch {
		case s != nil && s.Leading() && s.member.Confirm(r.Context()) == nil:
			s.sessions.ServeHTTP(w, r)
			return
		case s != nil && s.LeaderAddress() != "":
			f.fail(w, r, fault.New(fault.Unavailable, "this server does not lead").WithHint("%s", s.LeaderAddress()))
			return
		}
		select {
		case <-moved:
		case <-time.After(leaderPoll):
		case <-wait.C:
			f.fail(w, r, fault.New(fault.Unavailable, "no server leads").WithHint("gantry cluster status"))
			return
		case <-r.Context().Done():
			return
		}
	}
}

// sessionPatience is short: another server may lead without this one knowing.
const sessionPatience = time.Second

const anyRole identity.Role = ""

// from lets machines of the cluster with the role through, and notes who calls. What one that is removed has open then ends.
func (f *front) from(role identity.Role, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := identity.CallerOf(r)
		if !ok {
			f.fail(w, r, fault.New(fault.Denied, "only machines of the cluster may call this").WithHint("join it: gantry join"))
			return
		}
		today, ok := f.find(r.Context(), c)
		switch {
		case !ok:
			f.fail(w, r, f.stranger(r.Context(), c.Node))
			return
		case role != anyRole && today != role:
			f.fail(w, r, fault.New(fault.Denied, "node %s is not a %s", c.Node, role))
			return
		}
		peer := c.Node
		// The certificate of a server that was demoted still says that it is one.
		if on := r.Header.Get(callerHeader); on != "" && today == identity.Server {
			c = identity.Caller{Node: on}
			if _, ok := f.find(r.Context(), c); !ok {
				f.fail(w, r, f.stranger(r.Context(), on)) // the other server has not heard that it was removed
				return
			}
		}
		r, leave := f.guests.enter(w, r, peer, c.Node)
		defer leave()
		h(w, r.WithContext(identity.WithCaller(r.Context(), c)))
	})
}

// find tells the role that a machine has in the cluster today, and whether it belongs to it: a certificate alone does not say
// so. A machine that has just joined may be ahead of what this one knows.
func (f *front) find(ctx context.Context, c identity.Caller) (identity.Role, bool) {
	ctx, cancel := context.WithTimeout(ctx, newcomerPatience)
	defer cancel()
	for {
		if role, ok := f.known(c); ok {
			return role, true
		}
		select {
		case <-time.After(leaderPoll):
		case <-ctx.Done():
			return "", false
		}
	}
}

// stranger refuses a machine that is not known here. Only the leader can say that it was removed, upon which it stops what it
// runs: another server may have missed that it joined.
func (f *front) stranger(ctx context.Context, node string) error {
	if s, _ := f.role.current(); s != nil && s.Leading() && s.member.Confirm(ctx) == nil {
		return machines.NotAMember(node)
	}
	return fault.New(fault.Unavailable, "node %q is not known here, and this server does not lead", node).WithHint("try another server")
}

// newcomerPatience is shorter than a node waits for the first answer to its session.
const newcomerPatience = time.Second

func (f *front) known(c identity.Caller) (identity.Role, bool) {
	if s, _ := f.role.current(); s != nil {
		n, ok := store.Get[*gantryv1.Node](s.store.Live(), c.Node)
		return identity.Role(n.GetRole()), ok
	}
	return f.machine.knows(c)
}
