// Package machines is the part of the API that is about the cluster itself: joining it, its certificates, its members and its
// nodes.
//
// New, then Register on the mux of the listeners: Public for operators, Between for machines. Handlers are safe in parallel
// and run on the leader. The package decides who belongs to the cluster; it starts and stops nothing on a machine, which
// learns from its own object what it is now.
package machines

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// Members is the replicated state's membership.
type Members interface {
	ID() string
	Leader() string
	Members() []cluster.Info
	// Answering are the IDs of the members that take part; nil where that is not known.
	Answering() map[string]bool
	AddLearner(ctx context.Context, name, peerURL string, anew bool) (id string, initial []string, err error)
	Promote(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	HandOver(ctx context.Context, to ...string) error
	// Snapshot reads the whole state as of now.
	Snapshot(ctx context.Context) (io.ReadCloser, error)
}

// Sealer keeps the signing key unreadable at rest.
type Sealer interface {
	Seal(name string, plain []byte) ([]byte, error)
	Open(name string, sealed []byte) ([]byte, error)
	Key() []byte
}

// Options is what the package works with.
type Options struct {
	Node    string // ID of this machine
	Version string
	Sealer  Sealer
	Logger  *slog.Logger
	Options []connect.HandlerOption
	// Findings are what other parts of the leader have to say of the cluster's state; nil for nothing.
	Findings func() []*gantryv1.Finding
}

// API holds the handlers. Use New.
type API struct {
	store   *store.Store
	members Members
	o       Options
	log     *slog.Logger
}

// New makes the handlers over a store and the members of its cluster.
func New(s *store.Store, m Members, o Options) *API {
	return &API{store: s, members: m, o: o, log: o.Logger}
}

// Public serves what operators call.
func (a *API) Public(mux *http.ServeMux) {
	mux.Handle(gantryv1connect.NewClusterServiceHandler(&clusterService{API: a}, a.o.Options...))
	mux.Handle(gantryv1connect.NewNodeAdminServiceHandler(&nodeAdmin{a}, a.o.Options...))
}

// Between serves what machines call: requests carry who calls (identity.WithCaller), but for joining.
func (a *API) Between(mux *http.ServeMux) {
	mux.Handle(gantryv1connect.NewJoinServiceHandler(&joining{a}, append(slices.Clone(a.o.Options), connect.WithReadMaxBytes(MaxJoin))...))
	mux.Handle(gantryv1connect.NewMachineServiceHandler(&machineService{a}, a.o.Options...))
}

// MaxJoin is the bytes of a request to join, which anybody may send.
const MaxJoin = 64 << 10

const (
	// ClusterKey is the key of the one Cluster object.
	ClusterKey = "cluster"
	// signingKey names the sealed signing key.
	signingKey = "cluster/signing-key"
	// DefaultCertificateLife is how long a machine's certificate is good for.
	DefaultCertificateLife = 30 * 24 * time.Hour
)

// Found makes the objects of a new cluster: the cluster with its signing key, and its first machine. What is there stays.
func Found(ctx context.Context, s *store.Store, sealer Sealer, c *gantryv1.Cluster, signer []byte, n *gantryv1.Node) error {
	return s.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get[*gantryv1.Cluster](tx, ClusterKey); !ok {
			if len(signer) == 0 {
				return fault.New(fault.Corrupt, "the state holds no cluster, and this machine belongs to one").
					WithHint("put the state back from where it is, or: gantry cluster restore BACKUP, here")
			}
			sealed, err := sealer.Seal(signingKey, signer)
			if err != nil {
				return err
			}
			c.Meta, c.SealedKey = store.NewMeta(ClusterKey), sealed
			store.Put(tx, c)
		}
		old, ok := store.Get[*gantryv1.Node](tx, n.Meta.Key)
		if !ok {
			store.Put(tx, n)
			return nil
		}
		return store.Modify(tx, old.Meta.Key, func(o *gantryv1.Node) error {
			o.Role, o.Address, o.ApiAddress, o.Member = n.Role, n.Address, n.ApiAddress, n.Member
			o.OverlayKey, o.Subnet = n.OverlayKey, n.Subnet
			return nil
		})
	})
}

// cluster is the one Cluster object.
func (a *API) cluster(r store.Reader) (*gantryv1.Cluster, error) {
	c, ok := store.Get[*gantryv1.Cluster](r, ClusterKey)
	if !ok {
		return nil, fault.New(fault.Unavailable, "the cluster has not been founded yet").WithHint("try again in a moment")
	}
	return c, nil
}

// Authority opens a cluster's certificate authority.
func Authority(c *gantryv1.Cluster, sealer Sealer) (*identity.Authority, error) {
	key, err := sealer.Open(signingKey, c.SealedKey)
	if err != nil {
		return nil, err
	}
	return identity.OpenAuthority(c.Roots, key)
}

func (a *API) authority(c *gantryv1.Cluster) (*identity.Authority, error) {
	return Authority(c, a.o.Sealer)
}

// TakeOver makes a machine the only server of a cluster whose others are lost; those that come back begin again as nodes. It
// gives the cluster, and the machine as it is in it: one that the cluster did not know may have to use another range.
func TakeOver(ctx context.Context, s *store.Store, n *gantryv1.Node) (c *gantryv1.Cluster, own *gantryv1.Node, err error) {
	err = s.Update(ctx, func(tx *store.Tx) (err error) {
		var ok bool
		if c, ok = store.Get[*gantryv1.Cluster](tx, ClusterKey); !ok {
			return fault.New(fault.Corrupt, "the restored state holds no cluster").WithHint("use another backup")
		}
		c = proto.Clone(c).(*gantryv1.Cluster)
		for _, o := range store.List[*gantryv1.Node](tx, "") {
			if err := retire(tx, o, n); err != nil {
				return err
			}
		}
		own = proto.Clone(n).(*gantryv1.Node)
		if old, ok := store.Get[*gantryv1.Node](tx, n.Meta.Key); ok {
			own.Meta, own.Subnet, own.Availability = old.Meta, old.Subnet, old.Availability
		} else if own.Subnet, err = rangeFor(c, n.Subnet, store.List[*gantryv1.Node](tx, "")); err != nil {
			return err
		}
		store.Put(tx, own)
		return nil
	})
	return c, own, err
}

// retire makes another server of a lost majority a node. One at the address of the machine that takes over is that machine
// as it was: it is gone.
func retire(tx *store.Tx, o, by *gantryv1.Node) error {
	switch {
	case o.Meta.Key == by.Meta.Key:
	case o.ApiAddress == by.ApiAddress:
		store.Delete[*gantryv1.Node](tx, o.Meta.Key)
	case o.Role == string(identity.Server):
		return store.Modify(tx, o.Meta.Key, func(x *gantryv1.Node) error {
			x.Role, x.Member = string(identity.Node), ""
			return nil
		})
	}
	return nil
}

// Life is how long a cluster's certificates are good for.
func Life(c *gantryv1.Cluster) time.Duration {
	if d := c.GetCertificateLife().AsDuration(); d > 0 {
		return d
	}
	return DefaultCertificateLife
}

func respond[T any](msg *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(msg), nil
}

// public is a cluster object without what only servers may know.
func public(c *gantryv1.Cluster) *gantryv1.Cluster {
	return &gantryv1.Cluster{
		Meta: c.Meta, Id: c.Id, Roots: c.Roots, NodeRange: c.NodeRange, NodePrefix: c.NodePrefix, VirtualIps: c.VirtualIps,
		Overlay: c.Overlay, CertificateLife: c.CertificateLife, SuspectAfter: c.SuspectAfter, DownAfter: c.DownAfter,
	}
}

// serverAddresses lists where servers answer.
func serverAddresses(r store.Reader) []string {
	var out []string
	for _, n := range store.List[*gantryv1.Node](r, "") {
		if n.Role == string(identity.Server) && n.ApiAddress != "" {
			out = append(out, n.ApiAddress)
		}
	}
	return out
}
