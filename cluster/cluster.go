// Package cluster runs this machine's member of the cluster's replicated state: etcd, embedded.
//
// Start begins a member whose files are under a directory; Client reaches it in process, without a network. A Member is
// safe in parallel. One machine runs one member of a cluster of one; joining other machines is not there yet.
package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/gantryd/gantry/fault"
)

// Options says where a member lives.
type Options struct {
	Root   string // durable files, the member's own directory
	Run    string // sockets
	Logger *slog.Logger
}

// Member is a running member.
type Member struct {
	etcd   *embed.Etcd
	client *clientv3.Client
}

const (
	startTimeout = 60 * time.Second
	quota        = 8 << 30 // bytes of state after which etcd refuses writes
	maxTxnOps    = 100_000
	maxRequest   = 64 << 20
)

// Start opens or makes the member and waits until it serves.
func Start(ctx context.Context, o Options) (*Member, error) {
	cfg, err := config(o)
	if err != nil {
		return nil, err
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the state in %s cannot be opened", o.Root).
			WithHint("is another gantryd running with the same --root? is the disk full or read-only? df -h %s", o.Root)
	}
	m := &Member{etcd: e}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		e.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "the state's server ended at its start")
	case <-time.After(startTimeout):
		e.Close()
		return nil, fault.New(fault.Timeout, "the state's server was not ready after %s", startTimeout)
	case <-ctx.Done():
		e.Close()
		return nil, ctx.Err()
	}
	m.client = v3client.New(e.Server)
	return m, nil
}

// Client reaches the member in process.
func (m *Member) Client() *clientv3.Client { return m.client }

// Err reports that the member has ended by itself.
func (m *Member) Err() <-chan error { return m.etcd.Err() }

// Stop ends the member cleanly.
func (m *Member) Stop() {
	_ = m.client.Close()
	m.etcd.Close()
}

func config(o Options) (*embed.Config, error) {
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
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{advertised}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.InitialCluster = fmt.Sprintf("%s=%s", cfg.Name, advertised.String())
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "periodic", "10m"
	cfg.QuotaBackendBytes = quota
	cfg.MaxTxnOps = maxTxnOps
	cfg.MaxRequestBytes = maxRequest
	cfg.SnapshotCount = 10_000
	cfg.TickMs, cfg.ElectionMs = 100, 1000
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger(o.Logger))
	return cfg, nil
}

func socketURL(dir, name string) url.URL {
	return url.URL{Scheme: "unix", Path: filepath.Join(dir, name)}
}

// logger passes etcd's warnings and errors on; its information lines say nothing that a person running Gantry needs.
func logger(log *slog.Logger) *zap.Logger {
	return zap.New(&slogCore{log: log})
}
