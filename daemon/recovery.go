package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/server/machines"
	"github.com/gantryd/gantry/store"
)

// recovery serves RecoveryService on this machine's own socket.
type recovery struct{ role *serverRole }

// order is something to be done to the state while no member runs.
type order struct {
	do   func(cluster.Options) error
	done chan error
}

// interrupt ends the present time of being a server, does what is ordered and begins anew.
func (r *serverRole) interrupt(ctx context.Context, do func(cluster.Options) error) error {
	if !r.machine.isServer() {
		return fault.New(fault.Conflict, "this machine is not a server").WithHint("run this on a server: its directory etcd has the state")
	}
	o := order{do: do, done: make(chan error, 1)}
	select {
	case r.orders <- o:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ForceNewCluster implements the API.
func (h *recovery) ForceNewCluster(ctx context.Context, _ *connect.Request[gantryv1.ForceNewClusterRequest]) (*connect.Response[gantryv1.RecoveryResponse], error) {
	if h.role.hasLeader() {
		return nil, fault.New(fault.Conflict, "the cluster has a leader: nothing has to be forced").WithHint("gantry cluster status")
	}
	err := h.role.interrupt(ctx, func(cluster.Options) error {
		return h.role.machine.update(func(m *gantryv1.MachineRecord) { m.Recovering = true })
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.RecoveryResponse{}), nil
}

// hasLeader reports whether this machine's member knows of a leader.
func (r *serverRole) hasLeader() bool {
	s, _ := r.current()
	member := r.awaited()
	if s != nil {
		member = s.member
	}
	return member != nil && member.Leader() != ""
}

// awaits notes the member of a server that has not reached a majority yet.
func (r *serverRole) awaits(m *cluster.Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = m
}

// unready is why this server does not work.
func (r *serverRole) unready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	reason := r.machine.noServer()
	switch {
	case reason != nil:
		return fault.Wrap(fault.Unavailable, reason, "this machine cannot be a server now; what runs goes on").WithHint("%s", fault.HintOf(reason))
	case r.waiting != nil:
		return fault.New(fault.Unavailable, "this server has not reached the others yet").WithHint("gantry cluster status")
	}
	return fault.New(fault.Unavailable, "this server starts").WithHint("try again; if it stays so: journalctl -u gantryd")
}

func (r *serverRole) awaited() *cluster.Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

// lonely answers ClusterService.Status from what is on the disk of a server that was started without a majority. The state is
// read for each question: it changes as soon as others are there.
func (r *serverRole) lonely(ctx context.Context) (http.Handler, error) {
	member := r.awaited()
	if member == nil {
		return nil, r.unready()
	}
	st, err := store.New(ctx, member.Local(), r.d.Logger)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	machines.New(st, member, machines.Options{
		Node: r.machine.Node().Meta.Key, Version: r.d.Version.GetVersion(), Logger: r.d.Logger, Options: server.HandlerOptions(),
	}).Public(mux)
	return mux, nil
}

// Restore implements the API.
func (h *recovery) Restore(ctx context.Context, stream *connect.ClientStream[gantryv1.BackupChunk]) (*connect.Response[gantryv1.RecoveryResponse], error) {
	file, head, err := h.receive(stream)
	if file != "" {
		defer os.Remove(file)
	}
	if err != nil {
		return nil, err
	}
	var kept string
	err = h.role.interrupt(ctx, func(o cluster.Options) error {
		if err := cluster.Restore(o, file, head.SecretsKey); err != nil {
			return err
		}
		kept, err = cluster.Finish(o, h.role.adopt)
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.RecoveryResponse{Kept: kept}), nil
}

// receive writes the stream to a file and holds it against the checksum at its end.
func (h *recovery) receive(stream *connect.ClientStream[gantryv1.BackupChunk]) (path string, head *gantryv1.BackupChunk, err error) {
	if !stream.Receive() || stream.Msg().GetCluster() == "" {
		return "", nil, errors.Join(stream.Err(), fault.New(fault.Invalid, "this is not a backup").WithHint("gantry cluster backup FILE makes one"))
	}
	head = stream.Msg()
	f, err := os.CreateTemp(h.role.d.Root, "restore-*")
	if err != nil {
		return "", nil, fault.Wrap(fault.Unavailable, err, "the backup cannot be written to %s", h.role.d.Root)
	}
	defer f.Close()
	for stream.Receive() {
		if _, err := f.Write(stream.Msg().GetData()); err != nil {
			return f.Name(), nil, fault.Wrap(fault.Exhausted, err, "the backup cannot be written to %s", h.role.d.Root)
		}
	}
	if err := stream.Err(); err != nil {
		return f.Name(), nil, err
	}
	return f.Name(), head, whole(f)
}

// whole checks the SHA-256 at the end of a snapshot.
func whole(f *os.File) error {
	damaged := fault.New(fault.Corrupt, "the backup is damaged or was cut short").WithHint("use another backup; nothing was changed")
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size <= sha256.Size {
		return damaged
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return damaged
	}
	sum, want := sha256.New(), make([]byte, sha256.Size)
	if _, err := io.CopyN(sum, f, size-sha256.Size); err != nil {
		return damaged
	}
	if _, err := io.ReadFull(f, want); err != nil || string(sum.Sum(nil)) != string(want) {
		return damaged
	}
	return nil
}

// adopt takes over the key of the secrets of a restored state; the old one, if it differs, is kept beside it.
func (r *serverRole) adopt(key []byte) error {
	path := filepath.Join(r.d.Root, sealFile)
	if old, err := os.ReadFile(path); err == nil && string(old) != string(key) {
		if err := os.Rename(path, path+".before-restore"); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot put the present key of the secrets aside")
		}
	}
	if err := seal.Import(path, key); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(r.d.Root, foundingFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot remove the signing key of the cluster that was given up")
	}
	return r.machine.update(func(m *gantryv1.MachineRecord) { m.Recovering, m.Founding = true, false })
}

// ErrAnew is what a daemon ends with that has to start anew at once, since it cannot go on with what it has opened. What runs is
// not touched.
var ErrAnew = errors.New("gantryd starts anew")

// reclaim makes this machine the one server of a state that was restored or forced: it is given a certificate of that
// cluster, and the servers of the lost majority have to begin again as nodes. Where the cluster has another network than the one
// that this machine was set up with, nothing may run on it and nobody be told of it before that is opened.
func (r *serverRole) reclaim(ctx context.Context, s *serving, sealer *seal.Box) error {
	rec := r.machine.Record()
	if !rec.Recovering {
		return nil
	}
	n := rec.Node
	n.Member, n.Role = s.member.ID(), string(identity.Server)
	c, own, err := machines.TakeOver(ctx, s.store, n)
	if err != nil {
		return err
	}
	if err := r.certify(c, n, sealer); err != nil {
		return err
	}
	c.Meta, c.SealedKey = nil, nil
	err = r.machine.update(func(m *gantryv1.MachineRecord) {
		m.Recovering, m.Cluster, m.Member, m.Node.Member, m.InitialCluster = false, c, n.Member, n.Member, nil
		m.Servers, m.Node.Subnet = nil, own.Subnet
		for _, o := range store.List[*gantryv1.Node](s.store.Snapshot(), "") {
			if o.Role == string(identity.Server) && o.ApiAddress != "" {
				m.Servers = append(m.Servers, o.ApiAddress)
			}
		}
	})
	if err != nil || sameNetwork(rec, r.machine.Record()) {
		return err
	}
	return fault.Wrap(fault.Unavailable, ErrAnew, "the cluster that this machine has taken over has another network than it was set up with")
}

// sameNetwork reports whether the networks that a daemon opens with the two records are the same.
func sameNetwork(a, b *gantryv1.MachineRecord) bool {
	x, y := a.Cluster, b.Cluster
	return a.Node.GetSubnet() == b.Node.GetSubnet() && x.GetOverlay() == y.GetOverlay() && x.GetId() == y.GetId() &&
		x.GetNodeRange() == y.GetNodeRange() && x.GetVirtualIps() == y.GetVirtualIps()
}

// certify signs this machine's own certificate with the authority of its cluster.
func (r *serverRole) certify(c *gantryv1.Cluster, n *gantryv1.Node, sealer *seal.Box) error {
	ca, err := machines.Authority(c, sealer)
	if err != nil {
		return err
	}
	key, request, err := identity.Request()
	if err != nil {
		return err
	}
	cert, err := ca.Sign(request, n.Meta.Key, identity.Server, n.Address, machines.Life(c))
	if err != nil {
		return err
	}
	return r.machine.keeper.Replace(cert, key, c.Roots)
}
