package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Sample is a small image as bytes: what a registry or an archive holds.
type Sample struct {
	Manifest v1.Descriptor
	Config   v1.Descriptor
	Layers   []v1.Descriptor
	Blobs    map[digest.Digest][]byte
}

// File is one entry of a layer.
type File struct {
	Header tar.Header
	Body   string
}

// NewSample makes an image for linux/amd64 with one gzip layer for each list of files.
func NewSample(t testing.TB, config v1.ImageConfig, layers ...[]File) *Sample {
	t.Helper()
	s := &Sample{Blobs: map[digest.Digest][]byte{}}
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	img := v1.Image{Created: &created, Config: config, RootFS: v1.RootFS{Type: "layers"}}
	img.OS, img.Architecture = "linux", "amd64"
	for _, files := range layers {
		plain := Tar(t, files...)
		var zipped bytes.Buffer
		zw := gzip.NewWriter(&zipped)
		_, err := zw.Write(plain)
		must(t, err)
		must(t, zw.Close())
		s.Layers = append(s.Layers, s.Add(v1.MediaTypeImageLayerGzip, zipped.Bytes()))
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromBytes(plain))
		img.History = append(img.History, v1.History{Created: &created, CreatedBy: "COPY . /"})
	}
	s.Config = s.AddJSON(t, v1.MediaTypeImageConfig, img)
	s.Manifest = s.AddJSON(t, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: s.Config, Layers: s.Layers,
	})
	return s
}

// Add adds a blob and returns its descriptor.
func (s *Sample) Add(mediaType string, body []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	s.Blobs[d.Digest] = body
	return d
}

// AddJSON adds a value as a JSON blob.
func (s *Sample) AddJSON(t testing.TB, mediaType string, v any) v1.Descriptor {
	t.Helper()
	body, err := json.Marshal(v)
	must(t, err)
	return s.Add(mediaType, body)
}

// Layout returns the image as a tar of an OCI layout, under a name if there is one.
func (s *Sample) Layout(t testing.TB, name string) []byte {
	t.Helper()
	root := s.Manifest
	if name != "" {
		root.Annotations = map[string]string{"io.containerd.image.name": name}
	}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{root}})
	must(t, err)
	files := []File{{Body: `{"imageLayoutVersion":"1.0.0"}`}, {Body: string(index)}}
	files[0].Header.Name, files[1].Header.Name = "oci-layout", "index.json"
	for d, body := range s.Blobs {
		files = append(files, File{Header: tar.Header{Name: "blobs/" + d.Algorithm().String() + "/" + d.Encoded()}, Body: string(body)})
	}
	return Tar(t, files...)
}

// Tar makes a tar stream. An entry without a type is a regular file.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Size = int64(len(f.Body))
		must(t, tw.WriteHeader(&h))
		_, err := io.WriteString(tw, f.Body)
		must(t, err)
	}
	must(t, tw.Close())
	return buf.Bytes()
}

// Store puts a sample into the rig under a name, as a finished pull would.
func (r *Rig) Store(t testing.TB, name string, s *Sample) {
	t.Helper()
	ctx := r.Context(t)
	for d, body := range s.Blobs {
		must(t, content.WriteBlob(ctx, r.Content, d.String(), bytes.NewReader(body), v1.Descriptor{Digest: d, Size: int64(len(body))}))
	}
	label := images.SetChildrenLabels(r.Content, images.ChildrenHandler(r.Content))
	must(t, images.Walk(ctx, label, s.Manifest))
	_, err := r.Images.Create(ctx, images.Image{Name: name, Target: s.Manifest})
	must(t, err)
}
