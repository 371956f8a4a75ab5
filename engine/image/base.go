package image

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/image/bootstrap"
	"github.com/gantryd/gantry/fault"
)

// labelInputs is the label of a bootstrapped image with the hash of what it was made from.
const labelInputs = "dev.gantry.bootstrap.inputs"

// defaultPath is the PATH of the well-known base images.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Bootstrap makes a base image from a distribution's packages and names it as asked. If the image is there and was made from
// the same inputs it does nothing and says so with the status "exists", unless the request forces it.
func (s *Service) Bootstrap(ctx context.Context, req *gantryv1.BootstrapRequest, emit Emit) (*gantryv1.Image, error) {
	names, err := baseNames(req)
	if err != nil {
		return nil, err
	}
	machine := bootstrap.ReadMachine(ctx, os.DirFS("/"))
	release, err := bootstrap.ParseRelease(req.Image, machine)
	if err != nil {
		return nil, err
	}
	plan, err := bootstrap.NewPlan(release, req.Variant, req.Include, machine)
	if err != nil {
		return nil, err
	}
	ctx, rep := report(s.in(ctx), emit)
	defer rep.cancel(nil)
	unlock, err := s.locks.lock(ctx, "bootstrap|"+names[0])
	if err != nil {
		return nil, explain(err, "bootstrap %s", req.Image)
	}
	defer unlock()
	target, err := s.base(ctx, plan, names, req.Force, rep)
	if rep.err != nil {
		return nil, rep.err
	}
	if err != nil {
		return nil, explain(err, "bootstrap %s", req.Image)
	}
	s.Announce(ctx)
	img, err := s.describe(ctx, target)
	if err != nil {
		return nil, err
	}
	return img, rep.finish(img)
}

func baseNames(req *gantryv1.BootstrapRequest) (names []string, err error) {
	for _, ref := range append([]string{req.Image}, req.Tags...) {
		n, err := Normalize(ref)
		if err != nil {
			return nil, err
		}
		if digestOf(n) != "" {
			return nil, fault.New(fault.Invalid, "image %s: a base image is named by a tag, not a digest", ref)
		}
		names = append(names, n)
	}
	return names, nil
}

// base finds the image that a plan made before, or makes it.
func (s *Service) base(ctx context.Context, plan *bootstrap.Plan, names []string, force bool, rep *reporter) (ocispec.Descriptor, error) {
	if f, err := s.Lookup(ctx, names[0], ""); err == nil && !force && madeFrom(f, plan) && s.complete(ctx, f) == nil {
		_ = rep.send(&gantryv1.Progress{Id: Familiar(names[0]), Status: "exists", Detail: "made from the same archives and packages before; --force makes it anew"})
		if err := s.unpackFound(ctx, f, rep); err != nil {
			return ocispec.Descriptor{}, err
		}
		return f.Target, s.putAll(ctx, names, f.Target)
	}
	if err := plan.Require(); err != nil {
		return ocispec.Descriptor{}, err
	}
	held, done, err := s.hold(ctx, "")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	target, err := s.makeBase(held, plan, names, rep)
	done(err)
	return target, err
}

// madeFrom tells whether an image is what a plan made. An image built on top of it has the label as well, but more layers.
func madeFrom(f *Found, plan *bootstrap.Plan) bool {
	return f.Config.Config.Labels[labelInputs] == plan.Hash() && len(f.Config.RootFS.DiffIDs) == 1
}

func (s *Service) putAll(ctx context.Context, names []string, target ocispec.Descriptor) error {
	for _, n := range names {
		if err := s.put(ctx, n, target, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) makeBase(ctx context.Context, plan *bootstrap.Plan, names []string, rep *reporter) (ocispec.Descriptor, error) {
	dir := filepath.Join(s.Root, "tmp")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return ocispec.Descriptor{}, err
	}
	dir, err := os.MkdirTemp(dir, "release-")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer os.RemoveAll(dir)
	_ = rep.send(&gantryv1.Progress{Id: "archives", Status: "preparing", Detail: plan.Archives()})
	epoch, err := plan.Epoch(ctx, dir)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	layer, diffID, err := s.packLayer(ctx, func(w io.Writer) error {
		return plan.Run(ctx, filepath.Dir(dir), epoch, w, func(e bootstrap.Event) {
			_ = rep.send(&gantryv1.Progress{Id: "packages", Status: e.Phase, Current: int64(e.Count), Detail: e.Detail})
		})
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	target, err := s.baseManifest(ctx, plan, epoch, layer, diffID)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := s.admit(ctx, target); err != nil {
		return ocispec.Descriptor{}, err
	}
	return target, s.putAll(ctx, names, target)
}

// baseManifest stores the documents of a one-layer image.
func (s *Service) baseManifest(ctx context.Context, plan *bootstrap.Plan, epoch time.Time, layer ocispec.Descriptor, diffID digest.Digest) (ocispec.Descriptor, error) {
	img := ocispec.Image{Created: &epoch, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}}}
	img.OS, img.Architecture = "linux", plan.Arch
	img.Config = ocispec.ImageConfig{Cmd: []string{"bash"}, Env: []string{defaultPath}, Labels: map[string]string{
		labelInputs: plan.Hash(), "org.opencontainers.image.title": plan.Release.Distribution,
		"org.opencontainers.image.version": plan.Release.Suite, "dev.gantry.bootstrap.packages": strings.Join(plan.Include, " "),
	}}
	img.History = []ocispec.History{{Created: &epoch, CreatedBy: "gantry image bootstrap " + plan.Release.Distribution + ":" + plan.Release.Suite}}
	config, err := s.putJSON(ctx, ocispec.MediaTypeImageConfig, img)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.putJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer},
	})
}

// packLayer stores a tar stream as a gzip layer while it is written.
func (s *Service) packLayer(ctx context.Context, write func(io.Writer) error) (layer ocispec.Descriptor, diffID digest.Digest, err error) {
	lease, _ := leases.FromContext(ctx)
	w, err := content.OpenWriter(ctx, s.Content, content.WithRef("layer-"+lease))
	if err != nil {
		return layer, "", err
	}
	defer w.Close()
	plain := digest.Canonical.Digester()
	zw, err := gzip.NewWriterLevel(w, gzip.DefaultCompression)
	if err != nil {
		return layer, "", err
	}
	if err := write(io.MultiWriter(plain.Hash(), zw)); err != nil {
		return layer, "", err
	}
	if err := zw.Close(); err != nil {
		return layer, "", err
	}
	st, err := w.Status()
	if err != nil {
		return layer, "", err
	}
	layer = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: w.Digest(), Size: st.Offset}
	if err := w.Commit(ctx, layer.Size, layer.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return layer, "", err
	}
	return layer, plain.Digest(), nil
}
