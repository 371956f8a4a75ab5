// Package image keeps the images of a node: it pulls, pushes, imports, exports, tags, removes and unpacks them in containerd's
// stores, and makes base images from a distribution's packages.
//
// Call FromClient with the engine's containerd client, or New with the stores themselves; then the methods of Service, which
// are all safe in parallel. Two calls for the same image and platform wait for each other. Work that fails leaves nothing but
// the finished parts of a pull, which the next pull of the same image goes on from until Options.ResumeWindow has passed.
//
// The package knows nothing of containers: who uses an image is told by callbacks. It is not the registry that serves images
// to others (package registry) and not a builder (package build).
package image

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/fault"
)

// Options says where images are kept. Content, Images, Leases and Root are required.
type Options struct {
	Content content.Store
	Images  images.Store
	Leases  leases.Manager
	// Snapshotter and Applier unpack images. Without them nothing is unpacked.
	Snapshotter snapshots.Snapshotter
	Applier     diff.Applier
	// SnapshotterName is the name containerd knows the snapshotter by; "overlayfs" if empty.
	SnapshotterName string
	// Namespace is containerd's namespace; "gantry" if empty.
	Namespace string
	// Root is the directory for configuration (Root/registries/HOST/hosts.toml) and temporary files.
	Root string
	// ResumeWindow is how long the parts of a failed pull are kept for the next try; one hour if 0, not at all if negative.
	ResumeWindow time.Duration
	// MaxImport is the largest archive in bytes, unpacked, that Import accepts; 256 GiB if 0.
	MaxImport int64
	// Peers say how images are exchanged with other nodes; nil if this machine stands alone.
	Peers  *peer.Options
	Logger *slog.Logger
}

// Service works on the images of one node.
type Service struct {
	Options
	locks keyLock
	queue queue
	peers *peer.Exchange
	// quiet swallows what containerd's libraries log; the same comes back as an error.
	quiet *log.Entry
}

// New makes a Service on containerd's stores.
func New(o Options) (*Service, error) {
	if o.Content == nil || o.Images == nil || o.Leases == nil || o.Root == "" {
		return nil, fault.New(fault.Internal, "image: Content, Images, Leases and Root are required")
	}
	if o.Namespace == "" {
		o.Namespace = "gantry"
	}
	if o.SnapshotterName == "" {
		o.SnapshotterName = "overlayfs"
	}
	if o.ResumeWindow == 0 {
		o.ResumeWindow = time.Hour
	}
	if o.MaxImport == 0 {
		o.MaxImport = 256 << 30
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(filepath.Join(o.Root, "registries"), 0o755); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "image: make %s", o.Root)
	}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	s := &Service{Options: o, quiet: logrus.NewEntry(quiet)}
	if o.Peers == nil {
		return s, nil
	}
	var err error
	s.peers, err = peer.New(*o.Peers, peer.Stores{Content: o.Content, Images: o.Images, Namespace: o.Namespace})
	return s, err
}

// FromClient makes a Service on the services of a containerd client. The stores in o are set from the client.
func FromClient(c *containerd.Client, o Options) (*Service, error) {
	if o.SnapshotterName == "" {
		o.SnapshotterName = "overlayfs"
	}
	o.Content, o.Images, o.Leases = c.ContentStore(), c.ImageService(), c.LeasesService()
	o.Snapshotter, o.Applier = c.SnapshotService(o.SnapshotterName), c.DiffService()
	return New(o)
}

func (s *Service) in(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, s.Namespace), s.quiet)
}

// Emit receives the progress of a long action, one message at a time. An error from it cancels the action.
type Emit func(*gantryv1.Progress) error
