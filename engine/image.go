package engine

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	containerd "github.com/containerd/containerd/v2/client"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/inroot"
	"github.com/gantryd/gantry/fault"
)

// accountFileLimit bounds /etc/passwd and /etc/group of a container.
const accountFileLimit = 4 << 20

// imageInfo is what starting a container needs of an image. It follows from the digest, so it is read once.
type imageInfo struct {
	digest   digest.Digest
	config   imagespec.ImageConfig
	parent   string // snapshot that the container's is made on
	accounts accounts
}

type imageCache struct {
	mu   sync.Mutex
	info map[imageKey]*imageInfo
	// load lets one image be read at a time.
	load sync.Mutex
	// reading lets one at a time look into an image: all of one image share the name of the view.
	reading sync.Mutex
}

type imageKey struct {
	digest   digest.Digest
	platform string
}

func (c *imageCache) get(k imageKey) *imageInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info[k]
}

func (c *imageCache) put(k imageKey, info *imageInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.info == nil {
		c.info = map[imageKey]*imageInfo{}
	}
	c.info[k] = info
}

func (c *imageCache) drop(k imageKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.info, k)
}

// image returns what is known of the spec's image, unpacking it first if need be.
func (e *Engine) image(ctx context.Context, spec *gantryv1.ContainerSpec) (*imageInfo, imageKey, error) {
	desc, err := e.findImage(ctx, spec)
	if err != nil {
		return nil, imageKey{}, err
	}
	key := imageKey{desc.Digest, spec.GetPlatform()}
	if info := e.images.get(key); info != nil {
		return info, key, nil
	}
	e.images.load.Lock()
	defer e.images.load.Unlock()
	if info := e.images.get(key); info != nil {
		return info, key, nil
	}
	info, err := e.loadImage(ctx, desc, spec)
	if err != nil {
		return nil, key, fault.Wrap(imageFaultKind(err), err, "image %s", spec.GetImage()).WithHint("gantry image pull %s", spec.GetImage())
	}
	e.images.put(key, info)
	return info, key, nil
}

func imageFaultKind(err error) fault.Kind {
	switch {
	case fault.KindOf(err) != fault.Unknown:
		return fault.KindOf(err)
	case errdefs.IsNotFound(err):
		return fault.NotFound
	}
	return fault.Internal
}

// findImage finds the image by digest, or by name where the spec has no digest.
func (e *Engine) findImage(ctx context.Context, spec *gantryv1.ContainerSpec) (imagespec.Descriptor, error) {
	if d := spec.GetImageDigest(); d != "" {
		parsed, err := digest.Parse(d)
		if err != nil {
			return imagespec.Descriptor{}, fault.Wrap(fault.Invalid, err, "image digest %q", d)
		}
		return imagespec.Descriptor{Digest: parsed}, nil
	}
	names := []string{spec.GetImage()}
	if named, err := reference.ParseDockerRef(spec.GetImage()); err == nil {
		names = append(names, named.String())
	}
	for _, name := range names {
		img, err := e.client.ImageService().Get(ctx, name)
		if err == nil {
			return img.Target, nil
		}
		if !errdefs.IsNotFound(err) {
			return imagespec.Descriptor{}, fault.Wrap(fault.Internal, err, "image %s", name)
		}
	}
	return imagespec.Descriptor{}, fault.New(fault.NotFound, "image %s is not on this node", spec.GetImage()).
		WithHint("gantry image pull %s", spec.GetImage())
}

func (e *Engine) loadImage(ctx context.Context, desc imagespec.Descriptor, spec *gantryv1.ContainerSpec) (*imageInfo, error) {
	matcher := platforms.Default()
	if p := spec.GetPlatform(); p != "" {
		parsed, err := platforms.Parse(p)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "platform %q", p)
		}
		matcher = platforms.Only(parsed)
	}
	store := e.client.ContentStore()
	desc, err := describe(ctx, store, desc)
	if err != nil {
		return nil, err
	}
	img := containerd.NewImageWithPlatform(e.client, images.Image{Name: spec.GetImage(), Target: desc}, matcher)
	config, err := imageConfig(ctx, store, img)
	if err != nil {
		return nil, err
	}
	if err := img.Unpack(ctx, snapshotter); err != nil { // returns at once if it is unpacked
		return nil, fault.Wrap(fault.Internal, err, "unpack")
	}
	diffs, err := img.RootFS(ctx)
	if err != nil {
		return nil, err
	}
	info := &imageInfo{digest: desc.Digest, config: config, parent: identity.ChainID(diffs).String()}
	info.accounts, err = e.imageAccounts(ctx, info.parent)
	return info, err
}

// describe fills in the size and the media type of a descriptor that is known by digest only.
func describe(ctx context.Context, store content.Store, desc imagespec.Descriptor) (imagespec.Descriptor, error) {
	if desc.MediaType != "" {
		return desc, nil
	}
	blob, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return desc, err
	}
	var doc struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(blob, &doc); err != nil {
		return desc, fault.Wrap(fault.Corrupt, err, "manifest %s", desc.Digest)
	}
	desc.Size, desc.MediaType = int64(len(blob)), doc.MediaType
	if desc.MediaType == "" {
		desc.MediaType = imagespec.MediaTypeImageManifest
		if doc.Manifests != nil {
			desc.MediaType = imagespec.MediaTypeImageIndex
		}
	}
	return desc, nil
}

func imageConfig(ctx context.Context, store content.Store, img containerd.Image) (imagespec.ImageConfig, error) {
	desc, err := img.Config(ctx)
	if err != nil {
		return imagespec.ImageConfig{}, err
	}
	blob, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return imagespec.ImageConfig{}, err
	}
	var full imagespec.Image
	if err := json.Unmarshal(blob, &full); err != nil {
		return imagespec.ImageConfig{}, fault.Wrap(fault.Corrupt, err, "image configuration %s", desc.Digest)
	}
	return full.Config, nil
}

// imageAccounts reads the users and groups of an image's file system.
func (e *Engine) imageAccounts(ctx context.Context, parent string) (a accounts, err error) {
	e.images.reading.Lock()
	defer e.images.reading.Unlock()
	sn := e.client.SnapshotService(snapshotter)
	key := "accounts-" + parent
	if err := sn.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) { // of a daemon that was killed here
		return a, err
	}
	mounts, err := sn.View(ctx, key, parent, snapshots.WithLabels(map[string]string{gcRootLabel: "true"}))
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, sn.Remove(ctx, key)) }()
	err = e.withMounts("accounts", mounts, func(dir string) error {
		a, err = readAccounts(dir)
		return err
	})
	return a, err
}

// readAccounts reads the users and groups under a root directory. Without the files there are none.
func readAccounts(dir string) (accounts, error) {
	root, err := os.Open(dir)
	if err != nil {
		return accounts{}, fault.Wrap(fault.NotFound, err, "root file system %s", dir)
	}
	defer root.Close()
	var a accounts
	for path, to := range map[string]*[]byte{"/etc/passwd": &a.passwd, "/etc/group": &a.group} {
		if *to, err = inroot.ReadFile(root, path, accountFileLimit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return accounts{}, err
		}
	}
	return a, nil
}

// ContentRoot is the directory of the blobs of an engine with the root: what is still being written is there too.
func ContentRoot(root string) string {
	return filepath.Join(root, "containerd", "io.containerd.content.v1.content")
}
