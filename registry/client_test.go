package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/engine/image/imagetest"
)

func (s *server) ref(t testing.TB, ref string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://")+"/"+ref, name.Insecure)
	check(t, err)
	return r
}

// TestForeignClient pushes and pulls with a client that is not ours, over everything that it knows to do.
func TestForeignClient(t *testing.T) {
	s := start(t)
	img, err := random.Image(100_000, 3)
	check(t, err)
	check(t, remote.Write(s.ref(t, "team/app:1"), img))
	back, err := remote.Image(s.ref(t, "team/app:1"))
	check(t, err)
	check(t, validate.Image(back))
	wantDigest, err := img.Digest()
	check(t, err)
	if got, err := back.Digest(); err != nil || got != wantDigest {
		t.Fatalf("pushed %s, pulled %s (%v)", wantDigest, got, err)
	}

	index, err := random.Index(20_000, 2, 3)
	check(t, err)
	check(t, remote.WriteIndex(s.ref(t, "team/multi:1"), index))
	backIndex, err := remote.Index(s.ref(t, "team/multi:1"))
	check(t, err)
	check(t, validate.Index(backIndex))

	check(t, remote.Tag(s.ref(t, "team/app:1").Context().Tag("2"), img))
	tags, err := remote.List(s.ref(t, "team/app:1").Context())
	check(t, err)
	if strings.Join(tags, " ") != "1 2" {
		t.Errorf("tags %v", tags)
	}
	mounted := mutate.MediaType(img, types.OCIManifestSchema1)
	check(t, remote.Write(s.ref(t, "other/app:1"), mounted))

	d, err := img.Digest()
	check(t, err)
	desc, err := partial.Descriptor(img)
	check(t, err)
	signature, err := random.Image(10, 1)
	check(t, err)
	check(t, remote.Write(s.ref(t, "team/app:signature"), mutate.Subject(signature, *desc).(v1.Image)))
	refs, err := remote.Referrers(s.ref(t, "team/app@"+d.String()).Context().Digest(d.String()))
	check(t, err)
	list, err := refs.IndexManifest()
	check(t, err)
	if len(list.Manifests) != 1 {
		t.Errorf("referrers %v", list.Manifests)
	}
	check(t, remote.Delete(s.ref(t, "team/app@"+d.String())))
	if _, err := remote.Image(s.ref(t, "team/app:2")); err == nil {
		t.Error("a tag outlived its manifest")
	}
}

// TestOwnClient pushes and pulls with package image, between two nodes and this registry.
func TestOwnClient(t *testing.T) {
	s := start(t)
	node := func() *image.Service {
		rig := imagetest.New(t)
		svc, err := image.New(image.Options{Content: rig.Content, Images: rig.Images, Leases: rig.Leases, Root: rig.Root + "/images"})
		check(t, err)
		return svc
	}
	a, b := node(), node()
	sample := imagetest.NewSample(t, ocispec.ImageConfig{}, []imagetest.File{{Body: strings.Repeat("x", 1<<20)}})
	ref := strings.TrimPrefix(s.URL, "http://") + "/team/own:1"
	_, err := a.Import(t.Context(), bytes.NewReader(sample.Layout(t, "")), ref)
	check(t, err)
	statuses := map[string]bool{}
	pushed, err := a.Push(t.Context(), &gantryv1.PushRequest{Image: ref}, func(p *gantryv1.Progress) error { statuses[p.Status] = true; return nil })
	check(t, err)
	if !statuses["uploading"] || !statuses["done"] {
		t.Errorf("progress %v", statuses)
	}
	pulled, err := b.Pull(t.Context(), &gantryv1.PullRequest{Image: ref}, nil)
	check(t, err)
	if pulled.Digest != pushed.Digest {
		t.Errorf("pushed %s, pulled %s", pushed.Digest, pulled.Digest)
	}
}

// TestParallelPushesUnderCollection pushes from many clients while containerd collects garbage all the time, restarts the registry
// in the middle, and then audits: every manifest that was acknowledged is there, whole, with the right bytes.
func TestParallelPushesUnderCollection(t *testing.T) {
	s := start(t)
	ctx, stop := context.WithCancel(t.Context())
	var collector sync.WaitGroup
	var rounds atomic.Int32
	collector.Go(func() {
		for ctx.Err() == nil {
			s.rig.Collect(t)
			rounds.Add(1)
		}
	})
	var mu sync.Mutex
	acknowledged := map[string]digest.Digest{}
	var g errgroup.Group
	for worker := range 8 {
		g.Go(func() error {
			for i := range 6 {
				// Half of the layers are the same in every repository, and are deleted in some meanwhile.
				layer := fmt.Sprintf("layer %d of %d", i, worker)
				if i%2 == 0 {
					layer = fmt.Sprintf("shared %d", i)
				}
				repo, tag := fmt.Sprintf("team/app%d", worker), fmt.Sprintf("v%d", i)
				d := s.pushImage(t, repo, tag, layer)
				if i%3 == 2 {
					resp, _ := s.do(t, "DELETE", "/v2/"+repo+"/manifests/"+d.String(), "")
					if resp.StatusCode != http.StatusAccepted {
						return errors.New(resp.Status)
					}
					continue
				}
				mu.Lock()
				acknowledged["/v2/"+repo+"/manifests/"+tag] = d
				mu.Unlock()
			}
			return nil
		})
	}
	check(t, g.Wait())
	stop()
	collector.Wait()
	s.restart(t)
	s.rig.Collect(t)
	for path, d := range acknowledged {
		resp, body := s.do(t, "GET", path, "")
		want(t, resp, http.StatusOK)
		if digest.FromString(body) != d {
			t.Fatalf("%s is not what was pushed", path)
		}
		layer := body[strings.LastIndex(body, "sha256:"):][:71]
		resp, content := s.do(t, "GET", path[:strings.Index(path, "/manifests/")]+"/blobs/"+layer, "")
		want(t, resp, http.StatusOK)
		if digest.FromString(content).String() != layer {
			t.Fatalf("layer %s of %s has other bytes", layer, path)
		}
	}
	if rounds.Load() < 3 || len(acknowledged) != 32 {
		t.Fatalf("%d collections, %d pushes: the test did not test", rounds.Load(), len(acknowledged))
	}
}
