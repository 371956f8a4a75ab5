package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/fault"
)

// announceWait bounds how long a command waits until the other nodes can know what it did.
const announceWait = 2 * time.Second

// Peers is the node's exchange of blobs with other nodes; nil if Options.Peers was.
func (s *Service) Peers() *peer.Exchange { return s.peers }

// Announce lets the cluster know the images as they are now, within moments. Call it after something else than this Service
// changed them. That nobody listens is no error: the exchange tells it later.
func (s *Service) Announce(ctx context.Context) {
	if s.peers == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), announceWait)
	defer cancel()
	s.peers.Changed()
	if err := s.peers.Announce(ctx); err != nil {
		s.Logger.Debug("the cluster was not told of an image", "err", err)
	}
}

// Changed is Announce that waits for nobody.
func (s *Service) Changed() {
	if s.peers != nil {
		s.peers.Changed()
	}
}

// Moved tells that another server may lead, which knows of no image yet.
func (s *Service) Moved() {
	if s.peers != nil {
		s.peers.Moved()
	}
}

// Bring makes an image be here that servers of the cluster know under this name, without asking a registry. That none of them
// knows it is no error.
func (s *Service) Bring(ctx context.Context, ref, platform string) error {
	if s.peers == nil {
		return nil
	}
	named, err := parse(ref)
	if err != nil {
		return nil // a digest's beginning is of this machine alone; what is no name is said by others
	}
	if _, err := s.Lookup(ctx, ref, platform); !fault.Is(err, fault.NotFound) {
		return err
	}
	if digestOf(named.String()) == "" {
		if d, err := s.peers.FindName(ctx, named.String(), false); err != nil || d == "" {
			return nil // that the servers cannot be asked must not keep anybody from a registry
		}
	}
	_, err = s.Pull(ctx, &gantryv1.PullRequest{Image: ref, Platform: platform, Policy: gantryv1.PullPolicy_PULL_POLICY_NEVER}, nil)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// findOrBring is find that looks on other nodes as well.
func (s *Service) findOrBring(ctx context.Context, ref string) (images.Image, error) {
	rec, err := s.find(ctx, ref)
	if !fault.Is(err, fault.NotFound) || s.peers == nil {
		return rec, err
	}
	if err := s.Bring(ctx, ref, ""); err != nil {
		return rec, err
	}
	return s.find(ctx, ref)
}

// known returns the digest that a pull is for, if its name has one or other nodes know the name.
func (p *puller) known(ctx context.Context, any bool) digest.Digest {
	if d := digestOf(p.name); d != "" || p.s.peers == nil || p.req.Policy == gantryv1.PullPolicy_PULL_POLICY_ALWAYS {
		return d
	}
	d, err := p.s.peers.FindName(ctx, p.name, any)
	if err != nil {
		p.s.Logger.Debug("the cluster was not asked for an image", "image", p.name, "err", err)
	}
	return d
}

// document reads a manifest or index of which only the digest is known, from the store or from another node.
func (s *Service) document(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	body, err := s.storedDocument(ctx, d)
	if errdefs.IsNotFound(err) {
		body, err = s.peers.Document(ctx, d, maxManifest)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{Digest: d, Size: int64(len(body)), Data: body}
	desc.MediaType, err = mediaType(body)
	return desc, err
}

func (s *Service) storedDocument(ctx context.Context, d digest.Digest) ([]byte, error) {
	info, err := s.Content.Info(ctx, d)
	if err != nil {
		return nil, err
	}
	if info.Size > maxManifest {
		return nil, fault.New(fault.Invalid, "%s is %d bytes; at most %d are read", d, info.Size, maxManifest)
	}
	return content.ReadBlob(ctx, s.Content, ocispec.Descriptor{Digest: d, Size: info.Size})
}

// mediaType tells what a document is. An OCI document need not say so itself.
func mediaType(body []byte) (string, error) {
	var doc struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", fault.Wrap(fault.Corrupt, err, "the manifest is not the JSON it should be")
	}
	switch {
	case images.IsIndexType(doc.MediaType), images.IsManifestType(doc.MediaType):
		return doc.MediaType, nil
	case doc.MediaType != "":
	case doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case doc.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fault.New(fault.Unsupported, "a %q is not an image", doc.MediaType)
}

// forbidden is the registry of an image whose pull policy is never.
type forbidden struct{ name string }

// Resolve refuses.
func (f forbidden) Resolve(context.Context, string) (string, ocispec.Descriptor, error) {
	return "", ocispec.Descriptor{}, missing(f.name)
}

// Fetcher returns what refuses to fetch.
func (f forbidden) Fetcher(context.Context, string) (remotes.Fetcher, error) {
	return remotes.FetcherFunc(func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		return nil, fault.New(fault.Unavailable, "the pull policy of image %s is never", Familiar(f.name)).
			WithHint("start the nodes that have it, or permit pulls from its registry")
	}), nil
}

// Pusher refuses.
func (f forbidden) Pusher(context.Context, string) (remotes.Pusher, error) {
	return nil, missing(f.name)
}

// both adds to a registry's error why no other node helped.
func (p *puller) both(err, peers error) error {
	switch {
	case p.s.peers == nil || err == nil || peers == nil && p.req.Policy == gantryv1.PullPolicy_PULL_POLICY_ALWAYS:
		return err
	case peers == nil:
		return fmt.Errorf("%w (and no other node knows it)", err)
	}
	return fmt.Errorf("%w (other nodes: %v)", err, peers)
}

// elsewhere ends a sentence on where an image is not.
func (p *puller) elsewhere() string {
	if p.s.peers == nil {
		return ""
	}
	return ", nor on another node"
}

// corruptTries is how often a blob is fetched whose bytes are wrong: each time from nodes that had no part in it.
const corruptTries = 3

// fetchHandler stores one document or layer. Bytes that turn out wrong are thrown away, or the next pull would go on with them.
func (p *puller) fetchHandler(fetcher remotes.Fetcher) images.HandlerFunc {
	var to content.Ingester = p.s.Content
	tries := 1
	if p.s.peers != nil {
		to, tries = p.s.peers.Ingester(), corruptTries
	}
	fetch := remotes.FetchHandler(to, fetcher)
	return func(ctx context.Context, d ocispec.Descriptor) (children []ocispec.Descriptor, err error) {
		for range tries {
			if children, err = fetch(ctx, d); !errdefs.IsFailedPrecondition(err) {
				return children, err
			}
			if abort := p.s.Content.Abort(ctx, remotes.MakeRefKey(ctx, d)); abort != nil && !errdefs.IsNotFound(abort) {
				p.s.Logger.Warn("image: throw away a damaged download", "digest", d.Digest, "error", abort)
			}
		}
		return nil, err
	}
}
