package build

import (
	"context"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// BuildKit names the namespace to the content, snapshot and lease services itself, but not to these two.

type namespacedImages struct {
	images.Store
	ns string
}

func (n namespacedImages) Get(ctx context.Context, name string) (images.Image, error) {
	return n.Store.Get(namespaces.WithNamespace(ctx, n.ns), name)
}

func (n namespacedImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return n.Store.List(namespaces.WithNamespace(ctx, n.ns), filters...)
}

func (n namespacedImages) Create(ctx context.Context, image images.Image) (images.Image, error) {
	return n.Store.Create(namespaces.WithNamespace(ctx, n.ns), image)
}

// Update leaves an image that already is what it should be alone: a write is an fsync and an event for everyone.
func (n namespacedImages) Update(ctx context.Context, image images.Image, fieldpaths ...string) (images.Image, error) {
	ctx = namespaces.WithNamespace(ctx, n.ns)
	if old, err := n.Store.Get(ctx, image.Name); err == nil && len(fieldpaths) == 0 && old.Target.Digest == image.Target.Digest {
		return old, nil
	}
	return n.Store.Update(ctx, image, fieldpaths...)
}

func (n namespacedImages) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	return n.Store.Delete(namespaces.WithNamespace(ctx, n.ns), name, opts...)
}

type diffService interface {
	diff.Applier
	diff.Comparer
}

type namespacedDiff struct {
	diffService
	ns string
}

func (n namespacedDiff) Apply(ctx context.Context, desc ocispecs.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispecs.Descriptor, error) {
	return n.diffService.Apply(namespaces.WithNamespace(ctx, n.ns), desc, mounts, opts...)
}

func (n namespacedDiff) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispecs.Descriptor, error) {
	return n.diffService.Compare(namespaces.WithNamespace(ctx, n.ns), lower, upper, opts...)
}
