// Package registry serves images by the OCI distribution protocol straight out of containerd's content store, with no second
// copy of a blob.
//
// New makes the handler; Handler.Prune and Handler.Close are the rest of it. All methods are safe in parallel. A blob is visible
// only in the repositories that it was pushed or mounted to. What is pushed is held by one containerd lease for each repository,
// so that the garbage collector of the node never takes it; which digests a repository has, and its tags, are in a bbolt file.
// The images of the node itself can be pulled as well, by their names, but are not changed by a push.
//
// The package neither listens nor knows users: the daemon does the one, Options.Authorize the other.
package registry

import (
	"context"
	"hash/fnv"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/gantryd/gantry/fault"
)

// Action is what a request wants to do with a repository.
type Action string

// The actions. Catalog is asked with an empty repository.
const (
	Pull    Action = "pull"
	Push    Action = "push"
	Delete  Action = "delete"
	Catalog Action = "catalog"
)

// Options configure a registry. Content, Leases and Root are required.
type Options struct {
	Content content.Store
	Leases  leases.Manager
	// Images are the node's own images, which can be pulled too: "docker.io/library/x" as "library/x" and any image by its full
	// name. Nil serves only what was pushed.
	Images images.Store
	// Namespace is containerd's namespace; "gantry" if empty.
	Namespace string
	// Root is the directory of the registry's own file.
	Root string
	// MaxManifest is the largest manifest in bytes; 4 MiB if 0.
	MaxManifest int64
	// MaxBlob is the largest blob in bytes; unlimited if 0.
	MaxBlob int64
	// UploadLife is how long an unfinished upload can be gone on with; 24 hours if 0.
	UploadLife time.Duration
	// Authorize decides over a request; nil allows everything. A fault.Denied is answered with 403, ErrLogin with 401.
	Authorize func(r *http.Request, repository string, a Action) error
	Logger    *slog.Logger
}

// ErrLogin is what Authorize returns when the request should come again with a user name and password.
var ErrLogin error = fault.New(fault.Denied, "log in first")

// Handler is a registry.
type Handler struct {
	Options
	links   *links
	uploads uploads
	repos   [64]sync.Mutex // taken while a repository's links and its lease change together
}

// New opens a registry and puts right what a crash left between its file and containerd.
func New(ctx context.Context, o Options) (*Handler, error) {
	if o.Content == nil || o.Leases == nil || o.Root == "" {
		return nil, fault.New(fault.Internal, "registry: Content, Leases and Root are required")
	}
	if o.Namespace == "" {
		o.Namespace = "gantry"
	}
	if o.MaxManifest == 0 {
		o.MaxManifest = 4 << 20
	}
	if o.UploadLife == 0 {
		o.UploadLife = 24 * time.Hour
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Root, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "registry: make %s", o.Root)
	}
	l, err := openLinks(filepath.Join(o.Root, "registry.db"))
	if err != nil {
		return nil, err
	}
	h := &Handler{Options: o, links: l}
	if err := h.reconcile(h.in(ctx)); err != nil {
		_ = l.close()
		return nil, err
	}
	return h, nil
}

// Close ends every upload's open file and the registry's own. Unfinished uploads can be gone on with after a restart.
func (h *Handler) Close() error {
	h.uploads.closeIdle(0)
	return h.links.close()
}

func (h *Handler) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, h.Namespace)
}

// lock takes the lock of a repository's state and returns the function that frees it.
func (h *Handler) lock(repo string) func() {
	f := fnv.New32a()
	_, _ = f.Write([]byte(repo))
	m := &h.repos[f.Sum32()%uint32(len(h.repos))]
	m.Lock()
	return m.Unlock
}
