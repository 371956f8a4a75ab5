// Package peer lets nodes send each other the parts of images, so that an image on one node runs on all without a registry.
//
// New makes a node's Exchange. Serve Handler to other nodes and to nobody else; Run it, so that the cluster's tracker knows what
// this node has. A pull writes through Ingester and reads through Fetcher: then what is still arriving is already sent on, and a
// download that breaks goes on at its byte with another node, at last with the registry. All methods are safe in parallel.
//
// What a peer sends is believed only once it is complete and has its digest; no more is read than the size that the manifest
// says. The package chooses nobody: the tracker on the leader does. See DESIGN.md.
package peer

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/internal/ids"
	"github.com/gantryd/gantry/internal/tally"
)

// Options say how other nodes are reached. Tracker and Client are required.
type Options struct {
	// Tracker is the way to the tracker on the leader, an error while there is none. It is asked again when a way has failed.
	Tracker func(context.Context) (gantryv1connect.NodeImageServiceClient, error)
	// Client speaks to the node whose API has an address, "host:port", and makes sure that it is one.
	Client func(address string) *http.Client
	// Scheme of a node's API; "https" if empty.
	Scheme string
	// ContentRoot is the directory of containerd's content store. If it is empty, what still arrives is not sent on.
	ContentRoot string
	// MaxUploads and MaxDownloads are how many large blobs are sent and fetched at a time; 16 and 4 if 0.
	MaxUploads, MaxDownloads int
	// Stall is how long a node that sends may be silent; 10 s if 0. One that itself waits for others is given more.
	Stall time.Duration
	// MinRate is the bytes a second below which a node is too slow, once it has sent for RateAfter; 64 KiB and 20 s if 0.
	MinRate   int64
	RateAfter time.Duration
	// Patience is how long is waited for nodes that are busy or broken while nothing else has a blob; 5 s if 0.
	Patience time.Duration
	Logger   *slog.Logger
}

// Stores are where a node's images are.
type Stores struct {
	Content content.Store
	Images  images.Store
	// Namespace is containerd's.
	Namespace string
}

// Exchange is a node's part in the exchange. Use New.
type Exchange struct {
	Options
	stores    Stores
	boot      string
	flights   flights
	uploads   semaphore
	documents semaphore // uploads of small blobs
	downloads semaphore
	distrust  distrust
	said      ledger
	way       way
	figures   Figures
}

// Figures is what an exchange counts.
type Figures struct {
	Sent     tally.Counter // bytes to other nodes
	Received tally.Counter // bytes from other nodes
	Fallback tally.Counter // bytes from registries
	Failures tally.Counter // times that another node did not send what it was asked for
	Corrupt  tally.Counter // blobs that were not what their digest says
}

// Figures are the exchange's own; they are live.
func (x *Exchange) Figures() *Figures { return &x.figures }

// way is the tracker's client that worked last. Its calls end when the leader may have moved.
type way struct {
	mu     sync.Mutex
	client gantryv1connect.NodeImageServiceClient
	end    context.CancelFunc
	over   context.Context
}

// Moved tells that another server may lead: calls to the one before are given up, and it is told all that this node has.
func (x *Exchange) Moved() {
	x.way.mu.Lock()
	if x.way.end != nil {
		x.way.end()
	}
	x.way.client, x.way.end, x.way.over = nil, nil, nil
	x.way.mu.Unlock()
	x.said.want(scan)
}

// ask calls the tracker. After a failure another way is taken.
func ask[Req, Resp any](ctx context.Context, x *Exchange, req *Req,
	method func(gantryv1connect.NodeImageServiceClient, context.Context, *connect.Request[Req]) (*connect.Response[Resp], error),
) (*Resp, error) {
	client, over, err := x.tracker(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(over, cancel)()
	resp, err := method(client, ctx, connect.NewRequest(req))
	if err == nil {
		return resp.Msg, nil
	}
	x.way.mu.Lock()
	defer x.way.mu.Unlock()
	if x.way.client == client {
		x.way.client = nil
	}
	if over.Err() != nil {
		return nil, fault.New(fault.Unavailable, "another server may lead by now")
	}
	return nil, wire.Decode(err)
}

// tracker is the way to the tracker.
func (x *Exchange) tracker(ctx context.Context) (gantryv1connect.NodeImageServiceClient, context.Context, error) {
	x.way.mu.Lock()
	defer x.way.mu.Unlock()
	if x.way.over == nil {
		x.way.over, x.way.end = context.WithCancel(context.Background())
	}
	if x.way.client != nil {
		return x.way.client, x.way.over, nil
	}
	var err error
	x.way.client, err = x.Tracker(ctx)
	return x.way.client, x.way.over, err
}

// New makes an Exchange.
func New(o Options, s Stores) (*Exchange, error) {
	if o.Tracker == nil || o.Client == nil {
		return nil, fault.New(fault.Internal, "peer: Tracker and Client are required")
	}
	if o.Scheme == "" {
		o.Scheme = "https"
	}
	if o.MaxUploads == 0 {
		o.MaxUploads = 16
	}
	if o.MaxDownloads == 0 {
		o.MaxDownloads = 4
	}
	if o.Stall == 0 {
		o.Stall = 10 * time.Second
	}
	if o.MinRate == 0 {
		o.MinRate = 64 << 10
	}
	if o.RateAfter == 0 {
		o.RateAfter = 20 * time.Second
	}
	if o.Patience == 0 {
		o.Patience = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Exchange{
		Options: o, stores: s, boot: ids.New(), said: newLedger(), uploads: make(semaphore, o.MaxUploads),
		documents: make(semaphore, maxDocuments), downloads: make(semaphore, o.MaxDownloads),
	}, nil
}

func (x *Exchange) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, x.stores.Namespace)
}

// semaphore bounds how many do something at a time.
type semaphore chan struct{}

func (s semaphore) try() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s semaphore) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s semaphore) release() { <-s }

// maxDistrust bounds how many blobs are remembered of which somebody sent something wrong.
const maxDistrust = 1000

// distrust is which nodes may have sent something wrong. It lasts until the blob is right or all else has failed.
type distrust struct {
	mu  sync.Mutex
	all map[digest.Digest][]string
}

func (d *distrust) add(of digest.Digest, nodes []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil || len(d.all) >= maxDistrust {
		d.all = map[digest.Digest][]string{}
	}
	d.all[of] = append(d.all[of], nodes...)
}

func (d *distrust) of(blob digest.Digest) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[blob]
}

func (d *distrust) forget(blob digest.Digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, blob)
}

// errMissing tells that the exchange ends here: no other node has a blob.
var errMissing = errors.New("no other node has it")
