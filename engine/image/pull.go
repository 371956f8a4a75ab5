package image

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Pull makes an image present and unpacked, as the request's policy says, and returns it. The last message to emit has it too.
// One that is ahead of need unpacks nothing, and fails with fault.Conflict if the image is pulled in earnest meanwhile.
func (s *Service) Pull(ctx context.Context, req *gantryv1.PullRequest, emit Emit) (*gantryv1.Image, error) {
	named, err := parse(req.Image)
	if err != nil {
		return nil, err
	}
	match, err := matcher(req.Platform)
	if err != nil {
		return nil, err
	}
	ctx, rep := report(s.in(ctx), emit)
	defer rep.cancel(nil)
	ctx, done, err := s.turn(ctx, named.String()+"|"+req.Platform, req.Ahead)
	if err != nil {
		return nil, explain(err, "image %s", req.Image)
	}
	defer done()
	p := &puller{s: s, req: req, name: named.String(), match: match, rep: rep}
	target, err := p.ensure(ctx)
	if err != nil {
		if rep.err != nil {
			return nil, rep.err
		}
		return nil, gaveWay(ctx, err)
	}
	img, err := s.describe(ctx, target)
	if err != nil {
		return nil, err
	}
	return img, rep.finish(img)
}

// puller is one pull.
type puller struct {
	s     *Service
	req   *gantryv1.PullRequest
	name  string
	match platforms.MatchComparer
	rep   *reporter
}

// ensure decides by the policy who is asked. Never means no registry: what other nodes have is in the cluster already.
func (p *puller) ensure(ctx context.Context) (ocispec.Descriptor, error) {
	if p.req.Policy != gantryv1.PullPolicy_PULL_POLICY_ALWAYS {
		f, err := p.local(ctx)
		switch {
		case err == nil && p.req.Ahead:
			return f.Target, nil
		case err == nil:
			return f.Target, p.s.unpackFound(ctx, f, p.rep)
		case !fault.Is(err, fault.NotFound) || p.never() && p.s.peers == nil:
			return ocispec.Descriptor{}, err
		}
	}
	key := digest.FromString(p.name + "|" + p.req.Platform).Encoded()[:32]
	held, done, err := p.s.hold(ctx, key)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	target, err := p.fetch(held)
	done(err)
	return target, p.explain(err)
}

func (p *puller) never() bool { return p.req.Policy == gantryv1.PullPolicy_PULL_POLICY_NEVER }

func (p *puller) local(ctx context.Context) (*Found, error) {
	rec, err := p.s.find(ctx, p.name)
	if err != nil {
		return nil, err
	}
	f, err := p.s.open(ctx, rec, p.match)
	if err != nil {
		return nil, err
	}
	return f, p.s.complete(ctx, f)
}

// complete checks that every layer is stored: a pull that was cut in two must not count as an image.
func (s *Service) complete(ctx context.Context, f *Found) error {
	for _, l := range f.ManifestBody.Layers {
		if images.IsNonDistributable(l.MediaType) {
			continue
		}
		if _, err := s.Content.Info(ctx, l.Digest); err != nil {
			return explain(err, "image %s: layer %s", f.Name, l.Digest)
		}
	}
	return nil
}

func (p *puller) explain(err error) error {
	if err == nil {
		return nil
	}
	short := Familiar(p.name)
	if errdefs.IsNotFound(err) && strings.Contains(err.Error(), "no match for platform") {
		return fault.Wrap(fault.NotFound, err, "image %s has no variant for %s", short, p.platform()).
			WithHint("name another with --platform, or another image")
	}
	if errdefs.IsNotFound(err) {
		return fault.Wrap(fault.NotFound, err, "image %s is not in its registry%s", short, p.elsewhere()).
			WithHint("check the name and tag; a private image needs docker login first")
	}
	return explain(err, "pull %s", short)
}

func (p *puller) platform() string {
	if p.req.Platform != "" {
		return p.req.Platform
	}
	return platforms.DefaultString()
}

// fetch downloads, unpacks and records the image: from other nodes if its digest is known, else as its registry says. When the
// registry fails, what any node means by the name is the last choice.
func (p *puller) fetch(ctx context.Context) (ocispec.Descriptor, error) {
	_ = p.rep.send(&gantryv1.Progress{Id: Familiar(p.name), Status: "resolving"})
	resolver, err := p.resolver(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	target, done, peers := p.tryPeers(ctx, resolver, false)
	if done {
		return target, peers
	}
	name, target, err := resolver.Resolve(ctx, p.name)
	if err == nil {
		return target, p.download(ctx, resolver, name, target)
	}
	if digestOf(p.name) == "" && ctx.Err() == nil {
		target, done, late := p.tryPeers(ctx, resolver, true)
		if done {
			return target, late
		}
		peers = errors.Join(peers, late)
	}
	return target, p.both(err, peers)
}

// resolver speaks with the registry, if the policy permits it.
func (p *puller) resolver(ctx context.Context) (remotes.Resolver, error) {
	if p.never() {
		return forbidden{p.name}, nil
	}
	named, err := parse(p.name)
	if err != nil {
		return nil, err
	}
	return p.s.resolver(ctx, named, p.req.Auth)
}

// tryPeers is done if other nodes could say what the image is, whatever came of it then.
func (p *puller) tryPeers(ctx context.Context, resolver remotes.Resolver, any bool) (target ocispec.Descriptor, done bool, err error) {
	d := p.known(ctx, any)
	if d == "" || p.s.peers == nil {
		return target, false, nil
	}
	if target, err = p.s.document(ctx, d); err != nil {
		return target, ctx.Err() != nil, err
	}
	return target, true, p.download(ctx, resolver, p.name, target)
}

// download stores, unpacks and records an image. Each blob comes from where it can be had: other nodes first.
func (p *puller) download(ctx context.Context, resolver remotes.Resolver, name string, target ocispec.Descriptor) error {
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return err
	}
	if p.s.peers != nil {
		fetcher = p.s.peers.Fetcher(fetcher)
	}
	h, err := p.handler(meteredFetcher{fetcher, p.rep})
	if err != nil {
		return err
	}
	if err := p.keep(ctx, h, target); err != nil {
		return err
	}
	target.Annotations, target.URLs, target.Data = nil, nil, nil
	if err := p.s.put(ctx, p.name, target, p.labels()); err != nil {
		return err
	}
	p.s.Changed()
	return nil
}

// handler stores one document or layer and tells of its children on the wanted platform.
func (p *puller) handler(fetcher remotes.Fetcher) (images.Handler, error) {
	cs := p.s.Content
	children := images.SetChildrenMappedLabels(cs, images.ChildrenHandler(cs), images.ChildGCLabels)
	children = images.LimitManifests(images.FilterPlatforms(children, p.match), p.match, 1)
	source, err := docker.AppendDistributionSourceLabel(cs, p.name)
	if err != nil {
		return nil, err
	}
	return images.Handlers(images.HandlerFunc(checkDescriptor), p.present(), p.fetchHandler(fetcher), children, source), nil
}

// present tells of layers that need no download.
func (p *puller) present() images.HandlerFunc {
	return func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(d.MediaType) {
			if _, err := p.s.Content.Info(ctx, d.Digest); err == nil {
				p.rep.step(d, "exists", d.Size)
			}
		}
		return nil, nil
	}
}

// checkDescriptor refuses what a hostile registry could use to fill memory.
func checkDescriptor(_ context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	limit := int64(-1)
	switch {
	case images.IsManifestType(d.MediaType), images.IsIndexType(d.MediaType):
		limit = maxManifest
	case images.IsConfigType(d.MediaType):
		limit = maxConfig
	}
	if limit >= 0 && d.Size > limit {
		return nil, fault.New(fault.Invalid, "%s (%s) is %d bytes; at most %d are accepted", d.Digest, d.MediaType, d.Size, limit)
	}
	return nil, d.Digest.Validate()
}

// dispatch walks a target with a handler and unpacks what it finds. It returns when nothing is under way any more.
func (s *Service) dispatch(ctx context.Context, h images.Handler, target ocispec.Descriptor, rep *reporter) error {
	if s.Snapshotter == nil || s.Applier == nil {
		return images.Dispatch(ctx, h, nil, target)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	u, err := unpack.NewUnpacker(ctx, s.Content, unpack.WithFetchAllContent(), unpack.WithUnpackPlatform(unpack.Platform{
		SnapshotterKey: s.SnapshotterName, Snapshotter: s.Snapshotter, Applier: meteredApplier{s.Applier, rep},
	}))
	if err != nil {
		return err
	}
	err = images.Dispatch(ctx, u.Unpack(h), nil, target)
	if err != nil {
		cancel()
	}
	_, unpackErr := u.Wait()
	return errors.Join(err, unpackErr)
}

// put records an image under a name. What the name stood for before stays as an unnamed image until it is pruned, since a
// release may still want it by digest. Labels are those of a new record.
func (s *Service) put(ctx context.Context, name string, target ocispec.Descriptor, labels map[string]string) error {
	rec := images.Image{Name: name, Target: target, Labels: labels}
	old, err := s.Images.Get(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		_, err = s.Images.Create(ctx, rec)
		if errdefs.IsAlreadyExists(err) {
			return s.put(ctx, name, target, labels)
		}
		return err
	case err != nil:
		return err
	case old.Target.Digest != target.Digest:
		if err := s.dangle(ctx, old); err != nil {
			return err
		}
	}
	fields := []string{"target"}
	if labels == nil && old.Labels[labelDangling] != "" {
		fields = append(fields, "labels."+labelDangling) // somebody names it now
	}
	_, err = s.Images.Update(ctx, rec, fields...)
	if errdefs.IsNotFound(err) {
		return s.put(ctx, name, target, labels)
	}
	return err
}

// labelDangling marks a record that only keeps an image whose name moved on.
const labelDangling = "gantry.dev/dangling"

func (s *Service) dangle(ctx context.Context, old images.Image) error {
	rec := images.Image{Name: untagged(old.Name) + "@" + old.Target.Digest.String(), Target: old.Target, Labels: map[string]string{labelDangling: "true"}}
	if bare(old.Name) {
		return nil
	}
	_, err := s.Images.Create(ctx, rec)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// Unpack makes an image's file system ready for containers and returns its chain ID, the name of the snapshot that a
// container's own is made on.
func (s *Service) Unpack(ctx context.Context, ref, platform string) (digest.Digest, error) {
	f, err := s.Lookup(ctx, ref, platform)
	if err != nil {
		return "", err
	}
	ctx, rep := report(s.in(ctx), nil)
	defer rep.cancel(nil)
	return f.ChainID, s.unpackFound(ctx, f, rep)
}

// unpackFound unpacks an image that is stored, if it is not unpacked yet.
func (s *Service) unpackFound(ctx context.Context, f *Found, rep *reporter) error {
	if s.Snapshotter == nil || s.unpacked(ctx, f) {
		return nil
	}
	held, done, err := s.hold(ctx, "")
	if err != nil {
		return err
	}
	err = s.dispatch(held, images.ChildrenHandler(s.Content), f.Manifest, rep)
	done(err)
	return explain(err, "unpack %s", Familiar(f.Name))
}

func (s *Service) unpacked(ctx context.Context, f *Found) bool {
	if len(f.Config.RootFS.DiffIDs) == 0 {
		return true
	}
	if _, err := s.Snapshotter.Stat(ctx, f.ChainID.String()); err != nil {
		return false
	}
	// The reference from the configuration is what keeps the snapshot; without it the next collection takes it.
	info, err := s.Content.Info(ctx, f.ConfigDigest)
	return err == nil && info.Labels["containerd.io/gc.ref.snapshot."+s.SnapshotterName] == f.ChainID.String()
}
