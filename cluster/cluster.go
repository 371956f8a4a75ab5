// Package cluster runs this machine's member of the cluster's replicated state: etcd, embedded.
//
// Start begins a member whose files are under a directory; Client reaches it in process, without a network. Lead calls a
// function whenever this member is the one that decides; Members, AddLearner, Promote and Remove change who belongs to it. A
// Member is safe in parallel. A machine that stands alone runs a cluster of one that listens nowhere.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"github.com/gantryd/gantry/fault"
)

// Options says where a member lives.
type Options struct {
	Root   string // durable files, the member's own directory
	Run    string // sockets
	Logger *slog.Logger
	// Peers is how other members reach this one; nil for a cluster of one that nobody joins.
	Peers *Peers
	// Initial has "name=url" of every member of the cluster that a new member joins, itself included; empty for a new cluster.
	Initial []string
	// Existing says that a member has begun here before: if its state is not there, it is lost, and none is begun in its place unless
	// the member joins others.
	Existing bool
	// Force makes a cluster of one out of what this member has, when the majority is lost for good.
	Force bool
}

// Peers is a member's end of the connections between members.
type Peers struct {
	Name string // unique in the cluster
	// Listen and Advertise are "https://ADDRESS:PORT".
	Listen, Advertise string
	// Pair and Roots are PEM files: certificate with key, and who is trusted. They are read again at every handshake.
	Pair, Roots string
	// Hostname must be in the certificates of other members.
	Hostname string
	// Known reports whether a machine, by the common name of its certificate, belongs to the servers besides those that the state
	// lists by name. May be nil.
	Known func(machine string) bool
}

// ErrEnded is in the error of a Start whose member ended by itself, as one does that the others have removed.
var ErrEnded = errors.New("the member ended")

// ErrFailed is in the error of a member that could not go on.
var ErrFailed = errors.New("the member has failed")

// ErrBroken is in the error of an Open that failed half way: what it has opened stays open until the process ends.
var ErrBroken = errors.New("nothing of it can be used again")

// Member is a running member.
type Member struct {
	etcd   *embed.Etcd
	client *clientv3.Client
	peers  *Peers
	door   *door // nil if nobody joins
	stop   sync.Once
	stuck  bool

	answers answers

	db       string      // file
	reserved int64       // bytes of it that the disk has room for, whoever fills it
	dbFile   os.FileInfo // which file has that room
	log      string      // the file of the log that has room beyond its end
	failure  *failure
}

const (
	startTimeout = 60 * time.Second
	quota        = 8 << 30 // bytes of state after which etcd refuses writes
	maxTxnOps    = 100_000
	maxRequest   = 64 << 20
	confirmAgain = 100 * time.Millisecond
	stopPatience = 5 * time.Second // of a member that has failed
)

// Start opens or makes the member and waits until it serves.
func Start(ctx context.Context, o Options) (*Member, error) {
	m, err := Open(o)
	if err != nil {
		return nil, err
	}
	if err := m.AwaitReady(ctx); err != nil {
		m.Stop()
		return nil, err
	}
	return m, nil
}

// Open opens or makes the member and does not wait: until AwaitReady returns it can only tell what is on its own disk.
func Open(o Options) (*Member, error) {
	if err := o.lost(); err != nil {
		return nil, err
	}
	reserved, err := o.room()
	if err != nil {
		return nil, err
	}
	fail := newFailure()
	cfg, err := config(o, zap.WithFatalHook(fail), zap.WithPanicHook(fail))
	if err != nil {
		return nil, err
	}
	if err := preflight(o); err != nil {
		return nil, err
	}
	d, err := newDoor(o)
	if err != nil {
		return nil, err
	}
	e, err := start(cfg, fail)
	if err != nil {
		d.close()
	}
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return nil, full(o.Root, err)
	case errors.Is(err, ErrBroken) || errors.Is(err, wal.ErrCRCMismatch):
		return nil, damaged(o, err)
	case err != nil:
		return nil, fault.Wrap(fault.Corrupt, err, "the state in %s cannot be opened", o.Root).
			WithHint("is another gantryd running with the same --root, or the disk read-only? If not, its files are damaged: %s", o.remedy())
	}
	d.open(e)
	m := &Member{etcd: e, client: v3client.New(e.Server), peers: o.Peers, door: d, db: o.db(), reserved: reserved, failure: fail}
	if o.Peers != nil {
		go promptPeers(peerPort(cfg), e.Server.StopNotify())
		go m.answers.follow(e.Server.MemberID(), e.Server.StopNotify(), fail.done)
	}
	return m, nil
}

// damaged says what to do about a member whose files cannot be used.
func damaged(o Options, err error) error {
	return fault.Wrap(fault.Corrupt, err, "the state in %s is damaged", o.Root).WithHint("%s", o.remedy())
}

// remedy is what to do about damaged files.
func (o Options) remedy() string {
	if o.Peers == nil {
		return "gantry cluster restore BACKUP, here; then look for the cause: does the disk or the memory fail?"
	}
	return "if other servers lead, gantry node demote this one there, then promote it; else gantry cluster restore BACKUP, here"
}

// start is StartEtcd in a goroutine of its own, which a failure ends.
func start(cfg *embed.Config, fail *failure) (*embed.Etcd, error) {
	var e *embed.Etcd
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		e, err = embed.StartEtcd(cfg)
	}()
	ended := settles(done, fail)
	if !ended || e == nil && err == nil {
		<-fail.done
		return nil, fmt.Errorf("%w: %w", ErrBroken, fail.err)
	}
	return e, err
}

// AwaitReady returns when the member serves. One of several waits for a majority as long as it takes.
func (m *Member) AwaitReady(ctx context.Context) error {
	return m.awaitReady(ctx, m.etcd.Server.ReadyNotify())
}

// awaitReady waits for etcd to call the member ready, which it does once a change that the member has made of itself is committed.
// Where the leader ends just then, etcd tries again after seven seconds, in which this member may have to lead: so it is ready, too,
// as soon as a majority confirms what it has.
func (m *Member) awaitReady(ctx context.Context, ready <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var patience <-chan time.Time
	var confirmed <-chan struct{}
	if m.peers == nil {
		patience = time.After(startTimeout)
	} else {
		confirmed = m.confirmed(ctx)
	}
	select {
	case <-ready:
		return m.announce(ctx, m.peers)
	case <-confirmed:
		return m.announce(ctx, m.peers)
	case <-m.failure.done:
		return m.Failure()
	case err := <-m.etcd.Err():
		return fault.Wrap(fault.Unavailable, errors.Join(ErrEnded, err), "the state's server ended at its start")
	case <-patience:
		return fault.New(fault.Timeout, "the state's server was not ready after %s", startTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// confirmed is closed when a majority has confirmed that this member has all changes up to then.
func (m *Member) confirmed(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		for {
			if _, err := m.client.Get(ctx, EpochKey); err == nil {
				close(done)
				return
			}
			select {
			case <-time.After(confirmAgain):
			case <-ctx.Done():
				return
			}
		}
	}()
	return done
}

// Client reaches the member in process.
func (m *Member) Client() *clientv3.Client { return m.client }

// Local is a client whose reads tell what this member has on its own disk. It asks nobody, so the answers may be old.
func (m *Member) Local() *clientv3.Client {
	c := v3client.New(m.etcd.Server)
	c.KV = localReads{c.KV}
	return c
}

type localReads struct{ clientv3.KV }

// Get is part of clientv3.KV.
func (l localReads) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return l.KV.Get(ctx, key, append(opts, clientv3.WithSerializable())...)
}

// Err reports that the member has ended by itself.
func (m *Member) Err() <-chan error { return m.etcd.Err() }

// Stopped is closed when the member has been stopped: by Stop, or because the cluster has removed it.
func (m *Member) Stopped() <-chan struct{} { return m.etcd.Server.StopNotify() }

// Failed is closed when the member cannot go on, as when it cannot write: it has to be stopped.
func (m *Member) Failed() <-chan struct{} { return m.failure.done }

// Failure is why; call it once Failed is closed.
func (m *Member) Failure() error {
	return fault.Wrap(fault.Unavailable, m.failure.err, "the state's server has stopped").
		WithHint("is the disk full or read-only? df -h %s", filepath.Dir(m.db))
}

// Stop ends the member cleanly. Further calls do nothing.
func (m *Member) Stop() {
	m.stop.Do(func() {
		_ = m.client.Close()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			m.end()
		}()
		m.stuck = !settles(ended, m.failure)
		m.door.close()
	})
}

// settles waits for done. After a failure, which may have left locks held, it waits for a while only.
func settles(done <-chan struct{}, fail *failure) bool {
	select {
	case <-done:
		return true
	case <-fail.done:
	}
	select {
	case <-done:
		return true
	case <-time.After(stopPatience):
		return false
	}
}

// Stuck reports, after Stop, that a member which had failed has not ended: only the end of the process frees what it holds.
func (m *Member) Stuck() bool { return m.stuck }

func (m *Member) end() {
	select {
	case <-m.etcd.Server.ReadyNotify():
	default:
		// Close waits for what serves clients, and that waits until the member is ready or stopped.
		m.etcd.Server.Stop()
	}
	m.etcd.Close()
}

func config(o Options, hooks ...zap.Option) (*embed.Config, error) {
	for _, dir := range []string{o.Root, o.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot make the directory %s for the state", dir)
		}
	}
	peer := socketURL(o.Run, "etcd-peer.sock")
	client := socketURL(o.Run, "etcd.sock")
	for _, u := range []url.URL{peer, client} {
		_ = os.Remove(filepath.Join(u.Host, u.Path))
	}
	// A cluster of one has no peer that would use this. The socket's own path must not be told: etcd cannot read a list of
	// members in which a path has a comma.
	advertised := url.URL{Scheme: "unix", Host: "peer.sock"}
	cfg := embed.NewConfig()
	cfg.Name = "member"
	cfg.Dir = o.Root
	cfg.ForceNewCluster = o.Force
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{advertised}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	if err := between(cfg, o.Peers); err != nil {
		return nil, err
	}
	cfg.InitialCluster = fmt.Sprintf("%s=%s", cfg.Name, cfg.AdvertisePeerUrls[0].String())
	if len(o.Initial) > 0 {
		cfg.InitialCluster, cfg.ClusterState = strings.Join(o.Initial, ","), embed.ClusterStateFlagExisting
	}
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "periodic", "10m"
	cfg.QuotaBackendBytes = quota
	cfg.MaxTxnOps = maxTxnOps
	cfg.MaxRequestBytes = maxRequest
	// Entries are kept in memory until they are in a snapshot, and some are megabytes.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 2_000, 500
	cfg.TickMs, cfg.ElectionMs = 100, 1000
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger(o.Logger, hooks...))
	return cfg, nil
}

// peerPort is where members listen; it is the same for all.
func peerPort(cfg *embed.Config) int {
	port, _ := strconv.Atoi(cfg.AdvertisePeerUrls[0].Port()) // embed has read it
	return port
}

// between makes the member reachable for others, by its door.
func between(cfg *embed.Config, p *Peers) error {
	if p == nil {
		return nil
	}
	advertise, err := url.Parse(p.Advertise)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "the address %q of this member cannot be read", p.Advertise)
	}
	cfg.Name = p.Name
	cfg.AdvertisePeerUrls = []url.URL{*advertise}
	cfg.PeerTLSInfo = peerTLS(p)
	return nil
}

func socketURL(dir, name string) url.URL {
	return url.URL{Scheme: "unix", Path: filepath.Join(dir, name)}
}

// logger passes etcd's warnings and errors on; its information lines say nothing that a person running Gantry needs.
func logger(log *slog.Logger, hooks ...zap.Option) *zap.Logger {
	return zap.New(&slogCore{log: log, said: &memory{last: map[string]time.Time{}}}, hooks...)
}
