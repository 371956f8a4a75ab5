package daemon

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/control/job"
	"github.com/gantryd/gantry/control/replicate"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/control/schedule"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/observe"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/server/blobtrack"
	"github.com/gantryd/gantry/server/machines"
	"github.com/gantryd/gantry/store"
)

// serverRole is what this machine does while it is a server: it holds a member of the cluster's state and serves the API. It
// begins and ends with the role that the cluster gives the machine, and containers never notice.
type serverRole struct {
	d       *daemon
	machine *machine
	servers *servers
	local   server.Node

	ended  bool       // the member ended at its start: the others may have removed it
	orders chan order // to be done while no member runs

	mu  sync.Mutex
	now *serving // nil while there is none
	// waiting is the member of a server that has not reached a majority yet; nil if there is none.
	waiting *cluster.Member
	moved   chan struct{} // closed and replaced when now changes
	// reached has the ways to other machines by node.
	reached map[string]reached
}

// serving is a server role that works.
type serving struct {
	member    *cluster.Member
	store     *store.Store
	api       http.Handler // what operators call
	between   http.Handler // what machines call
	sessions  http.Handler // of the nodes, on the leader
	metrics   *observe.Metrics
	scheduler *schedule.Controller
	rollouts  rollout.Figures
	jobs      job.Figures
	tracker   *blobtrack.Tracker
	copies    *replicate.Controller
	reigns    atomic.Bool
}

func newServerRole(d *daemon, m *machine, s *servers, local server.Node) *serverRole {
	return &serverRole{
		d: d, machine: m, servers: s, local: local,
		orders: make(chan order), moved: make(chan struct{}), reached: map[string]reached{},
	}
}

// run follows the machine's role until ctx ends.
func (r *serverRole) run(ctx context.Context) error {
	for {
		changed := r.machine.Changed()
		if r.machine.isServer() && r.machine.keeper.Role() == identity.Server {
			if err := r.serve(ctx); err != nil && !r.outlive(ctx, err) {
				return r.anew(ctx, err)
			}
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		if err := r.forget(); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-r.machine.keeper.Changed():
		case <-ctx.Done():
			return nil
		}
	}
}

// anew is the error with which the daemon ends and starts anew, if what stood in the way is mended: a start with damaged state
// is not tried again by itself.
func (r *serverRole) anew(ctx context.Context, err error) error {
	if ctx.Err() == nil && errors.Is(err, cluster.ErrBroken) && fault.Is(err, fault.Corrupt) {
		return fault.Wrap(fault.Unavailable, ErrAnew, "something was done about the damaged state")
	}
	return err
}

// outlive waits before another try, if the machine has a use without its server role: others lead its cluster, or the disk
// will have space again, or a backup can be restored.
func (r *serverRole) outlive(ctx context.Context, err error) bool {
	mends := fault.Is(err, fault.Exhausted) || fault.Is(err, fault.Corrupt) || errors.Is(err, cluster.ErrFailed)
	broken := errors.Is(err, cluster.ErrBroken)
	hopeless := errors.Is(err, errStuck) || errors.Is(err, ErrAnew) || broken && !fault.Is(err, fault.Corrupt)
	if ctx.Err() != nil || hopeless || len(r.machine.Servers()) == 0 && !mends {
		return false
	}
	r.machine.bar(err)
	r.d.Logger.Error("this machine cannot be a server now and goes on as a node; trying again", "err", err, "hint", fault.HintOf(err))
	again := time.After(serverRetry)
	switch {
	case broken:
		again = nil // what the attempt has opened is in the way of another one in this process
	case fault.Is(err, fault.Corrupt):
		again = time.After(damagedRetry)
	}
	return r.awaitMending(ctx, again) || !broken
}

// awaitMending returns with again or ctx, or when something has been done about a server that cannot work: only then it is
// false.
func (r *serverRole) awaitMending(ctx context.Context, again <-chan time.Time) bool {
	for {
		changed := r.machine.Changed()
		if !r.machine.isServer() {
			return false
		}
		select {
		case <-again:
			return true
		case o := <-r.orders:
			o.done <- o.do(r.memberOptions())
			return false
		case <-changed:
		case <-ctx.Done():
			return true
		}
	}
}

// errStuck ends the daemon: only a new process can use the state again. Containers are not touched.
var errStuck = errors.New("the state's server has failed and does not end")

const (
	serverRetry  = 5 * time.Second
	damagedRetry = time.Minute // all of a damaged state is read again
)

// serve is one time of being a server, from the start of the member to the end of the role or of ctx.
func (r *serverRole) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	var given *order
	group.Go(func() error { return r.awaitDemotion(ctx) })
	group.Go(func() error {
		select {
		case o := <-r.orders:
			given = &o
			return errInterrupted
		case <-ctx.Done():
			return nil
		}
	})
	group.Go(func() error { return r.work(ctx) })
	err := group.Wait()
	r.set(nil)
	switch {
	case given != nil:
		given.done <- given.do(r.memberOptions())
		return nil
	case errors.Is(err, errDemoted):
		r.d.Logger.Info("this machine is no server any more; its instances go on")
		return nil
	case errors.Is(err, errNewRoots):
		r.d.Logger.Info("the member of the state starts again: it trusts another root now")
		return nil
	}
	return err
}

// errNewRoots ends a time of being a server, since etcd reads whom it trusts only at its start.
var errNewRoots = errors.New("the cluster has another root certificate")

// awaitNewRoots returns some time after the roots have changed: not all servers may be away at once. Until then the old root
// vouches for the new one.
func (r *serverRole) awaitNewRoots(ctx context.Context, member *cluster.Member) error {
	trusted := r.machine.keeper.Roots()
	for {
		changed := r.machine.keeper.Changed()
		if r.d.Advertise != "" && !bytes.Equal(trusted, r.machine.keeper.Roots()) {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
	select {
	case <-time.After(rand.N(rootsWithin)):
	case <-ctx.Done():
		return nil
	}
	if err := member.HandOver(ctx); err != nil {
		r.d.Logger.Warn("the lead could not be handed over", "err", err)
	}
	return errNewRoots
}

const rootsWithin = 10 * time.Second

// errDemoted ends a time of being a server.
var errDemoted = errors.New("this machine is no server any more")

// errInterrupted ends one too, and another begins.
var errInterrupted = errors.New("the state is being replaced")

func (r *serverRole) awaitDemotion(ctx context.Context) error {
	for {
		changed := r.machine.Changed()
		if !r.machine.isServer() {
			return errDemoted
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// forget removes the state of a former server: with its member gone, it could never be used again. A machine that waits for
// its certificate as a server has none yet.
func (r *serverRole) forget() error {
	if r.machine.isServer() {
		return nil
	}
	if err := cluster.GiveUp(r.memberOptions()); err != nil {
		return err
	}
	if _, err := os.Stat(r.stateDir()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := removeTree(r.stateDir()); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot remove the state that this machine held as a server")
	}
	return r.machine.update(func(m *gantryv1.MachineRecord) { m.Member, m.InitialCluster = "", nil })
}

// removeTree removes a directory with all that is in it. Of one that is a mount the directory itself stays.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if errors.Is(err, syscall.EBUSY) {
		return nil
	}
	return err
}

func (r *serverRole) stateDir() string { return filepath.Join(r.d.Root, "etcd") }

// work starts the member and everything over it, and runs it.
func (r *serverRole) work(ctx context.Context) (err error) {
	kept, err := cluster.Finish(r.memberOptions(), r.adopt)
	if err != nil {
		return err
	}
	if kept != "" {
		r.d.Logger.Warn("a restore that was interrupted is finished now", "kept", kept)
	}
	if err := r.admit(ctx); err != nil {
		return err
	}
	member, err := cluster.Open(r.memberOptions())
	if err != nil {
		return err
	}
	defer func() {
		if member.Stop(); member.Stuck() {
			err = errors.Join(errStuck, err)
		}
	}()
	r.awaits(member)
	if err := member.AwaitReady(ctx); err != nil {
		r.ended = errors.Is(err, cluster.ErrEnded)
		return err
	}
	st, err := r.openStore(ctx, member)
	if err != nil {
		return err
	}
	sealer, err := r.sealer(st)
	if err != nil {
		return err
	}
	s, srv := r.assemble(member, st, sealer)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return st.Run(ctx) })
	group.Go(func() error { return memberFailed(ctx, member, r.machine) })
	group.Go(func() error { return member.KeepRoom(ctx) })
	group.Go(func() error { return srv.Run(ctx) })
	group.Go(func() error { return r.vote(ctx, member) })
	group.Go(func() error { return r.succeed(ctx, member) })
	group.Go(func() error { return r.awaitNewRoots(ctx, member) })
	group.Go(func() error {
		return member.Lead(ctx, r.machine.Node().Meta.Key, func(ctx context.Context, epoch int64) error {
			return r.lead(ctx, s, srv, sealer, epoch)
		})
	})
	r.set(s)
	return group.Wait()
}

// openStore reads the state, for which a majority must be there.
func (r *serverRole) openStore(ctx context.Context, member *cluster.Member) (*store.Store, error) {
	for {
		st, err := store.New(ctx, member.Client(), r.d.Logger)
		if err == nil || !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			return st, err
		}
		r.d.Logger.Warn("the state cannot be read yet: do enough servers reach one another?", "err", err)
		select {
		case <-time.After(memberRetry):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// admit gets a member for a server that joins others, or that has lost what it had as one of them. One that had nobody to have
// it from is told so by cluster.Open.
func (r *serverRole) admit(ctx context.Context) error {
	rec := r.machine.Record()
	begun, err := r.memberOptions().Begun()
	if err != nil || begun && !r.ended || rec.Founding || rec.Recovering || len(r.machine.Servers()) == 0 {
		return err
	}
	for {
		req := &gantryv1.AddMemberRequest{PeerUrl: r.d.peerURL(), Empty: !begun}
		resp, err := ask(ctx, r.servers, req, gantryv1connect.MachineServiceClient.AddMember)
		if err == nil {
			return r.begin(rec.Member, resp)
		}
		if fault.Is(err, fault.Denied) {
			return err
		}
		r.d.Logger.Info("the other servers cannot take this one yet, trying again", "err", err)
		select {
		case <-time.After(memberRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin notes the member that this server has been given. A state that belongs to another member is of no use any more.
func (r *serverRole) begin(had string, resp *gantryv1.AddMemberResponse) error {
	r.ended = false
	if resp.Member != had {
		if err := removeTree(r.stateDir()); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot remove the state of a member that the others have removed")
		}
	}
	return r.machine.update(func(m *gantryv1.MachineRecord) { m.Member, m.InitialCluster = resp.Member, resp.InitialCluster })
}

const memberRetry = time.Second

func (d *daemon) peerURL() string { return "https://" + d.at(peerPort) }

func (r *serverRole) memberOptions() cluster.Options {
	d, rec := r.d, r.machine.Record()
	o := cluster.Options{
		Root: r.stateDir(), Run: filepath.Join(d.Config.Run, "etcd"), Logger: d.Logger, Existing: !rec.Founding,
		Force: rec.Recovering,
	}
	if len(r.machine.Servers()) > 0 && !rec.Recovering { // else there is nobody to join
		o.Initial = rec.InitialCluster
	}
	if d.Advertise == "" {
		return o
	}
	pair, roots := r.machine.keeper.Files()
	o.Peers = &cluster.Peers{
		Name: rec.Node.Meta.Key, Listen: d.peerURL(), Advertise: d.peerURL(), Pair: pair, Roots: roots, Hostname: identity.AnyServer,
		Known: r.isPeer,
	}
	return o
}

// isPeer reports whether a machine is a server, as the state here says, or the leader has told this machine in its session: one
// that became a server while this one was away may be the one that this one has to hear first.
func (r *serverRole) isPeer(node string) bool {
	if s, _ := r.current(); s != nil {
		if n, ok := store.Get[*gantryv1.Node](s.store.Live(), node); ok && n.Role == string(identity.Server) {
			return true
		}
	}
	role, ok := r.machine.knows(identity.Caller{Node: node})
	return ok && role == identity.Server
}

// sealer opens the key of the secrets; a new one is made only while nothing is sealed with another.
func (r *serverRole) sealer(st *store.Store) (*seal.Box, error) {
	snap := st.Snapshot()
	_, founded := store.Get[*gantryv1.Cluster](snap, machines.ClusterKey)
	fresh := !founded && len(store.List[*gantryv1.Secret](snap, "")) == 0
	return seal.Open(filepath.Join(r.d.Root, sealFile), fresh)
}

// assemble makes the handlers of a server.
func (r *serverRole) assemble(member *cluster.Member, st *store.Store, sealer *seal.Box) (*serving, *server.Server) {
	s := &serving{member: member, store: st, metrics: stateMetrics(st)}
	st.SetGate(r.admits(s))
	s.tracker = blobtrack.New(blobtrack.Options{Node: blobtrack.InStore(st), Released: blobtrack.ReleasedIn(st), Logger: r.d.Logger})
	calls := s.metrics.API()
	node := r.machine.Node().Meta.Key
	srv := server.New(st, r.local, server.Options{
		Node: node, VirtualIPs: r.machine.virtualIPs(), Sealer: sealer, Version: r.d.Version, Leadership: s, Reach: r.reach,
		Guarded: []string{r.d.Root, r.d.Config.Run}, Logger: r.d.Logger,
		Interceptors: []connect.Interceptor{calls}, ImageDigest: s.tracker.Digest, Holders: s.tracker.Holders,
	})
	sessionMetrics(s.metrics, srv.NodeSessions())
	s.scheduler = schedule.New(st, r.d.Logger)
	scheduleMetrics(s.metrics, s.scheduler.Figures())
	rolloutMetrics(s.metrics, &s.rollouts)
	jobMetrics(s.metrics, &s.jobs)
	s.copies = replicate.New(st, replicate.Options{Tracker: s.tracker, Copy: r.copyImage(st), Logger: r.d.Logger})
	copyMetrics(s.metrics, s.copies.Figures())
	m := machines.New(st, member, machines.Options{
		Node: node, Version: r.d.Version.GetVersion(), Sealer: sealer, Logger: r.d.Logger, Options: measured(calls, server.AuditedOptions(r.d.Logger)),
		Findings: s.copies.Findings,
	})
	api := http.NewServeMux()
	api.Handle("/", srv.Handler())
	m.Public(api)
	between := http.NewServeMux()
	m.Between(between)
	between.Handle(s.tracker.Handler(blobtrack.Access{Caller: callerNode}, server.HandlerOptions()...))
	s.api, s.between, s.sessions = api, between, srv.NodeHandler()
	return s, srv
}

// callerNode names the machine that a call comes from.
func callerNode(ctx context.Context) (string, error) {
	if c, ok := identity.CallerFrom(ctx); ok {
		return c.Node, nil
	}
	return "", fault.New(fault.Denied, "only machines of the cluster may ask for this")
}

// reach is the way to another machine of the cluster.
func (r *serverRole) reach(n *gantryv1.Node) server.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	way, ok := r.reached[n.Meta.Key]
	if !ok || way.address != n.ApiAddress {
		if ok {
			way.client.CloseIdleConnections()
		}
		way = reached{address: n.ApiAddress, client: r.machine.keeper.Client(n.Meta.Key)}
		r.reached[n.Meta.Key] = way
	}
	base := "https://" + n.ApiAddress
	return server.Node{
		Service: gantryv1connect.NewNodeServiceClient(way.client, base),
		Images:  gantryv1connect.NewImageServiceClient(way.client, base),
	}
}

// reached is the connections to another machine, kept for all calls to it.
type reached struct {
	address string
	client  *http.Client
}

// vote gives this server's member its vote once it has caught up with the others.
func (r *serverRole) vote(ctx context.Context, member *cluster.Member) error {
	for {
		learner := false
		for _, m := range member.Members() {
			learner = learner || m.ID == member.ID() && m.Learner
		}
		if !learner {
			return nil
		}
		_, err := ask(ctx, r.servers, &gantryv1.PromoteMemberRequest{Member: member.ID()}, gantryv1connect.MachineServiceClient.PromoteMember)
		if err != nil && ctx.Err() == nil {
			r.d.Logger.Debug("this server has no vote yet", "err", err)
		}
		select {
		case <-time.After(memberRetry / 4):
		case <-ctx.Done():
			return nil
		}
	}
}

// lead runs what only the leader does.
func (r *serverRole) lead(ctx context.Context, s *serving, srv *server.Server, sealer *seal.Box, epoch int64) error {
	// First of all no write of an earlier leader can follow those of this one.
	s.store.SetGuard(cluster.EpochKey, epoch)
	if err := s.store.Await(ctx, epoch); err != nil {
		return err
	}
	if err := r.reclaim(ctx, s, sealer); err != nil {
		return err
	}
	if err := r.found(ctx, s, sealer); err != nil {
		return err
	}
	r.d.Logger.Info("this server leads", "epoch", epoch)
	s.tracker.Reset()
	s.reigns.Store(true)
	r.announce()
	defer func() {
		s.reigns.Store(false)
		s.store.Forget()
		r.announce()
		r.d.Logger.Info("this server leads no longer")
	}()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return srv.Lead(ctx) })
	group.Go(func() error { return r.yield(ctx, s) })
	group.Go(func() error { return rollout.New(s.store, r.d.Logger).Measure(&s.rollouts).Run(as(ctx, "rollout")) })
	group.Go(func() error { return job.New(s.store, r.d.Logger).Measure(&s.jobs).Run(as(ctx, "jobs")) })
	group.Go(func() error { return s.scheduler.Run(as(ctx, "scheduler")) })
	group.Go(func() error { return s.copies.Run(ctx) })
	return group.Wait()
}

// found stores a new cluster's own objects, and this machine's as it is today.
func (r *serverRole) found(ctx context.Context, s *serving, sealer *seal.Box) error {
	rec := r.machine.Record()
	n := rec.Node
	n.Member = s.member.ID()
	signer, err := atomicfile.Read(filepath.Join(r.d.Root, foundingFile))
	if err != nil && (rec.Founding || !errors.Is(err, os.ErrNotExist)) {
		return fault.Wrap(fault.Corrupt, err, "the new cluster's signing key is gone").WithHint("start again with an empty --root")
	}
	if err := machines.Found(ctx, s.store, sealer, rec.Cluster, signer, n); err != nil || !rec.Founding {
		return err
	}
	if err := r.machine.update(func(m *gantryv1.MachineRecord) {
		m.Founding, m.Member, m.Node.Member = false, n.Member, n.Member
	}); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(r.d.Root, foundingFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot remove the copy of the signing key")
	}
	return nil
}

// memberFailed ends a server whose member has ended, unless that is because the cluster has removed it.
func memberFailed(ctx context.Context, m *cluster.Member, own *machine) error {
	select {
	case <-m.Failed():
		return m.Failure()
	case err := <-m.Err():
		return fault.Wrap(fault.Unavailable, err, "the state's server ended")
	case <-m.Stopped():
		return own.update(func(r *gantryv1.MachineRecord) { r.Node.Role = string(identity.Node) })
	case <-ctx.Done():
		return nil
	}
}

func (r *serverRole) set(s *serving) {
	r.mu.Lock()
	r.now, r.waiting = s, nil
	r.mu.Unlock()
	if s != nil {
		r.machine.bar(nil)
	}
	r.servers.ready.Store(s != nil)
	r.announce()
}

// announce wakes those who wait for a server that works, or leads.
func (r *serverRole) announce() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.moved)
	r.moved = make(chan struct{})
}

// current is the server that works, or nil, and what is closed when that changes.
func (r *serverRole) current() (*serving, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now, r.moved
}

// Leading is part of server.Leadership.
func (s *serving) Leading() bool { return s.reigns.Load() }

// LeaderAddress is part of server.Leadership.
func (s *serving) LeaderAddress() string {
	leader := s.member.Leader()
	if leader == "" || leader == s.member.ID() {
		return ""
	}
	for _, n := range store.List[*gantryv1.Node](s.store.Live(), "") {
		if n.Member == leader {
			return n.ApiAddress
		}
	}
	return ""
}

// noLeader says why nothing can be changed now.
func (s *serving) noLeader() error {
	voters := 0
	for _, m := range s.member.Members() {
		if !m.Learner {
			voters++
		}
	}
	return fault.New(fault.Unavailable, "this server hears no leader: it is cut off, or fewer than %d of the %d servers reach one another", voters/2+1, voters).
		WithHint("gantry cluster status, also on another server; what runs goes on running")
}
