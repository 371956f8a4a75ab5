// Package server is the API of a Gantry server: it checks what callers ask for, changes the store, and routes reads and
// streams of instances to the nodes they run on.
//
// New, then Handler and NodeHandler for listeners and Run for what it keeps in memory. Handlers are safe in parallel. Nothing here talks to
// containers: controllers and nodes act on what is stored.
package server

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/server/explain"
	"github.com/gantryd/gantry/server/nodesession"
	"github.com/gantryd/gantry/server/operations"
	"github.com/gantryd/gantry/store"
)

// Sealer keeps secrets unreadable at rest.
type Sealer interface {
	Seal(name string, plain []byte) ([]byte, error)
	Open(name string, sealed []byte) ([]byte, error)
	Fingerprint(name string, plain []byte) string
}

// Node is how the server reaches the node role of a machine.
type Node struct {
	Service gantryv1connect.NodeServiceClient
	Images  gantryv1connect.ImageServiceClient
	// ImageHandler serves the image API of the node as it is.
	ImageHandler http.Handler
}

// Leadership says which server leads. Only the leader changes the store and has the sessions of nodes.
type Leadership interface {
	Leading() bool
	// LeaderAddress is the "host:port" of the leader's API for machines; empty while there is none.
	LeaderAddress() string
}

// Options says what a server needs to know of its cluster.
type Options struct {
	Node       string // ID of the local node
	Leadership Leadership
	// Reach makes the way to another machine of the cluster.
	Reach      func(*gantryv1.Node) Node
	VirtualIPs netip.Prefix
	// ImageDigest is what an image's name stands for on any server; empty if none knows it. Nil asks the local node alone.
	ImageDigest func(name string) string
	// Holders are the IDs of the nodes that have the image with this digest; nil where nobody keeps count.
	Holders func(digest string) []string
	Sealer  Sealer
	Version *gantryv1.VersionResponse
	Guarded []string // directories of the daemon, which no container is given unless its environment permits all
	// Interceptors see every call of the API, measuring it for one.
	Interceptors []connect.Interceptor
	Logger       *slog.Logger
}

// Server holds the handlers. Use New.
type Server struct {
	store  *store.Store
	o      Options
	local  Node
	log    *slog.Logger
	events *eventLog
	nodes  *nodesession.Hub
}

// New makes a server over the store; local is the node on the same machine.
func New(s *store.Store, local Node, o Options) *Server {
	sessions := nodesession.Options{Secrets: o.Sealer, Admit: speaksForItself, Logger: o.Logger}
	if o.Leadership != nil {
		sessions.Leader = o.Leadership.LeaderAddress
	}
	return &Server{store: s, o: o, local: local, log: o.Logger, events: newEventLog(), nodes: nodesession.New(s, sessions)}
}

// Run keeps the log of events until ctx ends.
func (s *Server) Run(ctx context.Context) error { return s.events.run(ctx, s.store) }

// Lead serves the sessions of nodes until ctx ends: call it when this server begins to lead.
func (s *Server) Lead(ctx context.Context) error { return s.nodes.Run(ctx) }

// speaksForItself refuses a machine that reports for another one.
func speaksForItself(ctx context.Context, node string) error {
	if c, ok := identity.CallerFrom(ctx); ok && c.Node != node {
		return fault.New(fault.Denied, "machine %s may not speak for node %q", c.Node, node)
	}
	return nil
}

// NodeHandler serves the sessions of nodes, which are given every secret they need: it is for a listener that only nodes reach.
func (s *Server) NodeHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(gantryv1connect.NewNodeSessionServiceHandler(s.nodes, append(HandlerOptions(), nodesession.HandlerOption(), connect.WithReadMaxBytes(maxReport))...))
	return mux
}

// Handler serves the whole API but the sessions of nodes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	opts := append(HandlerOptions(), connect.WithInterceptors(s.o.Interceptors...), connect.WithInterceptors(&audit{log: s.log}))
	mux.Handle(gantryv1connect.NewAppServiceHandler(&apps{s}, opts...))
	mux.Handle(gantryv1connect.NewInstanceServiceHandler(&instances{s}, opts...))
	mux.Handle(gantryv1connect.NewVolumeServiceHandler(&volumes{s}, opts...))
	mux.Handle(gantryv1connect.NewNetworkServiceHandler(&networks{s}, opts...))
	mux.Handle(gantryv1connect.NewSecretServiceHandler(s.secrets(), opts...))
	mux.Handle(gantryv1connect.NewConfigServiceHandler(s.configs(), opts...))
	mux.Handle(gantryv1connect.NewSystemServiceHandler(&system{s}, opts...))
	mux.Handle(gantryv1connect.NewExplainServiceHandler(explain.New(s.store), opts...))
	mux.Handle(gantryv1connect.NewOperationServiceHandler(operations.New(s.store), opts...))
	mux.Handle("/"+gantryv1connect.ImageServiceName+"/", s.local.ImageHandler)
	s.handleImages(mux, opts)
	return mux
}

const (
	maxMessage = 64 << 20 // bytes of one request message
	maxReport  = 16 << 20 // of one report of a node: what it says of a thousand instances takes a tenth
)

// node is the way to a machine of the cluster.
func (s *Server) node(id string) (Node, error) {
	if id == s.o.Node {
		return s.local, nil
	}
	n, ok := store.Get[*gantryv1.Node](s.store.Snapshot(), id)
	if !ok || n.ApiAddress == "" {
		return Node{}, errNoNode(id)
	}
	return s.o.Reach(n), nil
}

// faults turns errors of kinds into their form on the wire.
type faults struct{}

// WrapUnary is part of connect.Interceptor.
func (faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, wire.Encode(err)
		}
		return resp, nil
	}
}

// WrapStreamingClient is part of connect.Interceptor.
func (faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is part of connect.Interceptor.
func (faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return wire.Encode(err)
		}
		return nil
	}
}

// respond wraps a message.
func respond[T any](msg *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(msg), nil
}

// HandlerOptions is how the node role of the same machine has to serve, so that its errors travel as the server's do.
func HandlerOptions() []connect.HandlerOption {
	return []connect.HandlerOption{connect.WithInterceptors(faults{}), connect.WithReadMaxBytes(maxMessage)}
}
