package blobtrack

import (
	"context"
	"net/http"
	"regexp"
	"slices"

	"connectrpc.com/connect"
	"github.com/distribution/reference"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// Access decides over requests of nodes.
type Access struct {
	// Caller names the node that a request's connection belongs to.
	Caller func(context.Context) (string, error)
	// Ready refuses requests while this server does not lead; nil if it always does.
	Ready func() error
}

// Handler serves NodeImageService and returns the path to serve it at. The options should turn faults into their form on the
// wire.
func (t *Tracker) Handler(a Access, opts ...connect.HandlerOption) (string, http.Handler) {
	return gantryv1connect.NewNodeImageServiceHandler(&handler{t, a}, opts...)
}

// InStore looks machines up in the store.
func InStore(st *store.Store) func(id string) (Node, bool) {
	return func(id string) (Node, bool) {
		snap := st.Snapshot()
		n, ok := store.Get[*gantryv1.Node](snap, id)
		if !ok {
			return Node{}, false
		}
		status, _ := store.Get[*gantryv1.NodeStatus](snap, id)
		return Node{Address: n.ApiAddress, Server: n.Role == "server", Down: status.GetState() == "down"}, true
	}
}

// ReleasedIn looks through the releases in the store.
func ReleasedIn(st *store.Store) func(name string) string {
	return func(name string) string {
		digest, last := "", int64(0)
		for _, r := range store.List[*gantryv1.Release](st.Snapshot(), "") {
			c := r.GetSpec().GetContainer()
			if c.GetImageDigest() == "" || r.Meta.Revision < last || fullName(c.Image) != name {
				continue
			}
			digest, last = c.ImageDigest, r.Meta.Revision
		}
		return digest
	}
}

// fullName is the form in which nodes know a name; empty for what is none.
func fullName(image string) string {
	n, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return ""
	}
	return reference.TagNameOnly(n).String()
}

type handler struct {
	t *Tracker
	a Access
}

// Blobs are named by sha256 or sha512.
var digestPattern = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)

const maxName = 4096

func badDigest(d string) error {
	if digestPattern.MatchString(d) {
		return nil
	}
	return fault.New(fault.Invalid, "%.80q is not a digest", d).WithHint("write it as sha256: and 64 hexadecimal digits")
}

// caller names the calling node, if it may call.
func (h *handler) caller(ctx context.Context) (string, error) {
	if h.a.Ready != nil {
		if err := h.a.Ready(); err != nil {
			return "", err
		}
	}
	node, err := h.a.Caller(ctx)
	if err != nil {
		return "", err
	}
	if _, ok := h.t.o.Node(node); !ok {
		return "", fault.New(fault.Denied, "node %q is not part of this cluster", node)
	}
	return node, nil
}

// Locate implements the API.
func (h *handler) Locate(ctx context.Context, req *connect.Request[gantryv1.LocateRequest]) (*connect.Response[gantryv1.LocateResponse], error) {
	node, err := h.caller(ctx)
	if err != nil {
		return nil, err
	}
	if err := badDigest(req.Msg.Digest); err != nil {
		return nil, err
	}
	return connect.NewResponse(h.t.Locate(node, req.Msg)), nil
}

// Announce implements the API.
func (h *handler) Announce(ctx context.Context, req *connect.Request[gantryv1.AnnounceRequest]) (*connect.Response[gantryv1.AnnounceResponse], error) {
	node, err := h.caller(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range slices.Concat(req.Msg.Have, req.Msg.Images) {
		if err := badDigest(d); err != nil {
			return nil, err
		}
	}
	for _, n := range req.Msg.Names {
		if err := badDigest(n.Digest); err != nil {
			return nil, err
		}
		if n.Name == "" || len(n.Name) > maxName {
			return nil, fault.New(fault.Invalid, "an image's name is empty or longer than %d bytes", maxName)
		}
	}
	return connect.NewResponse(h.t.Announce(node, req.Msg)), nil
}

// FindName implements the API.
func (h *handler) FindName(ctx context.Context, req *connect.Request[gantryv1.FindNameRequest]) (*connect.Response[gantryv1.FindNameResponse], error) {
	if _, err := h.caller(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&gantryv1.FindNameResponse{Digest: h.t.FindName(req.Msg.Name, req.Msg.Any)}), nil
}
