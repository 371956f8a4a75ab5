package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/fault"
)

// Limits on an archive besides its total size.
const (
	maxEntries  = 100_000
	maxDocument = 8 << 20
)

// bundle is a tar stream being read into the content store, under the context's lease.
type bundle struct {
	s       *Service
	in      *limited
	entries int
	// blobs and links are what was read, by path; documents are the JSON files that are not blobs.
	blobs     map[string]ocispec.Descriptor
	links     map[string]string
	documents map[string][]byte
}

func newBundle(s *Service, r io.Reader) *bundle {
	return &bundle{
		s: s, in: &limited{r: r, left: s.MaxImport}, blobs: map[string]ocispec.Descriptor{},
		links: map[string]string{}, documents: map[string][]byte{},
	}
}

// limited is a reader that fails, unlike io.LimitedReader, when there is more.
type limited struct {
	r    io.Reader
	left int64
}

// Read reads within the limit.
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fault.New(fault.Exhausted, "the archive is larger than is accepted, unpacked")
	}
	return n, err
}

// read takes in the whole stream, to its end: a compressed stream's checksum comes last.
func (a *bundle) read(ctx context.Context) error {
	tr := tar.NewReader(a.in)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.entry(ctx, h, tr); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, a.in)
	return err
}

func (a *bundle) entry(ctx context.Context, h *tar.Header, body io.Reader) error {
	if a.entries++; a.entries > maxEntries {
		return fault.New(fault.Invalid, "the archive has more than %d entries", maxEntries)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg:
	case tar.TypeSymlink: // how docker save names a layer twice
		target, err := cleanName(path.Join(path.Dir(name), h.Linkname))
		if path.IsAbs(h.Linkname) || err != nil {
			return fault.New(fault.Invalid, "the archive's link %q leads out of it", h.Name)
		}
		a.links[name] = target
		return nil
	default:
		return fault.New(fault.Invalid, "the archive's entry %q is neither a file nor a folder", h.Name)
	}
	if a.has(name) {
		return fault.New(fault.Invalid, "the archive has %q twice", h.Name)
	}
	switch name {
	case ocispec.ImageLayoutFile, ocispec.ImageIndexFile, "manifest.json":
		return a.document(name, h.Size, body)
	}
	return a.blob(ctx, name, h.Size, body)
}

func (a *bundle) has(name string) bool {
	_, blob := a.blobs[name]
	_, doc := a.documents[name]
	return blob || doc
}

func cleanName(name string) (string, error) {
	clean := path.Clean(name)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0) {
		return "", fault.New(fault.Invalid, "the archive's entry %q leads out of it", name)
	}
	return clean, nil
}

func (a *bundle) document(name string, size int64, body io.Reader) error {
	if size > maxDocument {
		return fault.New(fault.Invalid, "the archive's %s is %d bytes; at most %d are accepted", name, size, maxDocument)
	}
	b, err := io.ReadAll(body)
	a.documents[name] = b
	return err
}

// blob stores a file. The name of one in blobs/ is its digest, which must be right.
func (a *bundle) blob(ctx context.Context, name string, size int64, body io.Reader) error {
	want, err := blobDigest(name)
	if err != nil {
		return err
	}
	if err := a.s.room(size); err != nil {
		return err
	}
	lease, _ := leases.FromContext(ctx)
	d := ocispec.Descriptor{Digest: want, Size: size}
	w, err := content.OpenWriter(ctx, a.s.Content, content.WithRef("import-"+lease+"-"+name), content.WithDescriptor(d))
	if errdefs.IsAlreadyExists(err) {
		a.blobs[name] = d
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.Copy(w, body); err != nil {
		return err
	}
	if want == "" {
		d.Digest = w.Digest()
	}
	err = w.Commit(ctx, size, d.Digest)
	if errdefs.IsFailedPrecondition(err) {
		return fault.Wrap(fault.Corrupt, err, "the archive's %s is damaged", name)
	}
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	a.blobs[name] = d
	return nil
}

func blobDigest(name string) (digest.Digest, error) {
	rest, ok := strings.CutPrefix(name, "blobs/")
	if !ok {
		return "", nil
	}
	alg, hex, _ := strings.Cut(rest, "/")
	d := digest.NewDigestFromEncoded(digest.Algorithm(alg), hex)
	if err := d.Validate(); err != nil {
		return "", fault.Wrap(fault.Invalid, err, "the archive's %s is not named by a digest", name)
	}
	return d, nil
}

// room refuses a file that the disk has no space for, before it takes what other parts of the daemon need.
func (s *Service) room(size int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.Root, &fs); err != nil {
		return nil // the write itself will say
	}
	// A file system that says it has no blocks at all, as some in user space do, says nothing.
	if free := int64(fs.Bavail) * fs.Bsize; fs.Blocks > 0 && size > free-free/50 {
		return fault.New(fault.Exhausted, "no room on the disk for %d bytes more", size).WithHint("gantry system prune, or make room")
	}
	return nil
}

// images lists what the archive holds, an image once for each of its names.
func (a *bundle) images(ctx context.Context, reference string) ([]images.Image, error) {
	for from, to := range a.links {
		d, ok := a.blobs[to]
		if !ok {
			return nil, fault.New(fault.Corrupt, "the archive's link %q leads nowhere", from)
		}
		a.blobs[from] = d
	}
	if a.documents[ocispec.ImageLayoutFile] != nil {
		return a.layout(reference)
	}
	if a.documents["manifest.json"] != nil {
		return a.docker(ctx, reference)
	}
	return nil, fault.New(fault.Invalid, "the archive is neither an OCI layout nor a docker-archive").
		WithHint("make one with gantry image export, docker save or skopeo copy … oci-archive:FILE")
}

func (a *bundle) layout(reference string) (out []images.Image, err error) {
	var layout ocispec.ImageLayout
	if err := a.parse(ocispec.ImageLayoutFile, &layout); err != nil {
		return nil, err
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return nil, fault.New(fault.Unsupported, "the archive is an OCI layout of version %q; %s is understood", layout.Version, ocispec.ImageLayoutVersion)
	}
	var index ocispec.Index
	if err := a.parse(ocispec.ImageIndexFile, &index); err != nil {
		return nil, err
	}
	for _, m := range index.Manifests {
		name, err := archiveName(m.Annotations, reference)
		if err != nil {
			return nil, err
		}
		m.Annotations, m.URLs = nil, nil
		out = append(out, record(name, m))
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "the archive holds no image")
	}
	return out, nil
}

func record(name string, target ocispec.Descriptor) images.Image {
	if name == "" {
		name = target.Digest.String()
	}
	return images.Image{Name: name, Target: target}
}

func (a *bundle) parse(name string, into any) error {
	b, ok := a.documents[name]
	if !ok {
		return fault.New(fault.Corrupt, "the archive lacks %s", name)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fault.Wrap(fault.Corrupt, err, "the archive's %s", name)
	}
	return nil
}

// dockerEntry is one image of a docker-archive's manifest.json.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *bundle) docker(ctx context.Context, reference string) (out []images.Image, err error) {
	var entries []dockerEntry
	if err := a.parse("manifest.json", &entries); err != nil {
		return nil, err
	}
	for _, e := range entries {
		d, err := a.dockerManifest(ctx, e)
		if err != nil {
			return nil, err
		}
		if len(e.RepoTags) == 0 {
			out = append(out, record(reference, d))
		}
		for _, tag := range e.RepoTags {
			name, err := Normalize(tag)
			if err != nil {
				return nil, err
			}
			out = append(out, record(name, d))
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "the archive holds no image")
	}
	return out, nil
}

// dockerManifest makes the manifest that a docker-archive does not have.
func (a *bundle) dockerManifest(ctx context.Context, e dockerEntry) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var ok bool
	if m.Config, ok = a.blobs[path.Clean(e.Config)]; !ok {
		return ocispec.Descriptor{}, fault.New(fault.Corrupt, "the archive lacks %q", e.Config)
	}
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	for _, l := range e.Layers {
		d, ok := a.blobs[path.Clean(l)]
		if !ok {
			return ocispec.Descriptor{}, fault.New(fault.Corrupt, "the archive lacks %q", l)
		}
		t, err := a.s.layerType(ctx, d)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		d.MediaType = t
		m.Layers = append(m.Layers, d)
	}
	if err := a.s.checkLayers(ctx, m, e.Layers); err != nil {
		return ocispec.Descriptor{}, err
	}
	return a.s.putJSON(ctx, ocispec.MediaTypeImageManifest, m)
}

// checkLayers compares the layers of a docker-archive, which names no digests of them, with those in the configuration. Later
// it would be too late: what is unpacked already under a configuration's digests is not unpacked again.
func (s *Service) checkLayers(ctx context.Context, m ocispec.Manifest, names []string) error {
	body, err := content.ReadBlob(ctx, s.Content, m.Config)
	if err != nil {
		return err
	}
	var config ocispec.Image
	if err := json.Unmarshal(body, &config); err != nil {
		return fault.Wrap(fault.Corrupt, err, "the archive's configuration")
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return fault.New(fault.Corrupt, "the archive has %d layers, its configuration names %d", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	for i, d := range m.Layers {
		got, err := images.GetDiffID(ctx, s.Content, d)
		if err != nil {
			return fault.Wrap(fault.Corrupt, err, "the archive's layer %s", names[i])
		}
		if got != config.RootFS.DiffIDs[i] {
			return fault.New(fault.Corrupt, "the archive's layer %s is damaged: its content is not what the configuration names", names[i])
		}
	}
	return nil
}

// putJSON stores a document.
func (s *Service) putJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, content.WriteBlob(ctx, s.Content, "document-"+d.Digest.String(), bytes.NewReader(b), d)
}
