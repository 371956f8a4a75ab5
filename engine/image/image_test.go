package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/engine/image/imagetest"
	"github.com/gantryd/gantry/fault"
)

// node is a rig with the service under test.
func node(t *testing.T, change ...func(*image.Options)) (*imagetest.Rig, *image.Service) {
	t.Helper()
	rig := imagetest.New(t)
	o := image.Options{Content: rig.Content, Images: rig.Images, Leases: rig.Leases, Root: rig.Root + "/images"}
	if os.Getuid() == 0 {
		o.Snapshotter, o.Applier = rig.Snapshotter, rig.Applier
	}
	for _, c := range change {
		c(&o)
	}
	s, err := image.New(o)
	check(t, err)
	return rig, s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (%s)", err, fault.HintOf(err))
	}
}

func file(name, body string) imagetest.File {
	return imagetest.File{Header: tar.Header{Name: name}, Body: body}
}

func hello(t *testing.T) *imagetest.Sample {
	return imagetest.NewSample(t, v1.ImageConfig{Cmd: []string{"/hello"}, Labels: map[string]string{"is": "small"}},
		[]imagetest.File{file("hello", "hi")}, []imagetest.File{file("more", strings.Repeat("more ", 1000))})
}

// clean fails unless nothing at all is stored.
func clean(t *testing.T, rig *imagetest.Rig) {
	t.Helper()
	rig.Collect(t)
	blobs, writes := rig.Blobs(t)
	ls, err := rig.Leases.List(rig.Context(t))
	check(t, err)
	imgs, err := rig.Images.List(rig.Context(t))
	check(t, err)
	if n := rig.Snapshots(t); blobs+writes+len(ls)+len(imgs)+n > 0 {
		t.Fatalf("left over: %d blobs, %d writes, %d leases, %d images, %d snapshots", blobs, writes, len(ls), len(imgs), n)
	}
}

func TestNormalize(t *testing.T) {
	d := "@sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"debian:bookworm":       "docker.io/library/debian:bookworm",
		"me/app":                "docker.io/me/app:latest",
		"localhost:5000/x":      "localhost:5000/x:latest",
		"ghcr.io/a/b:1" + d:     "ghcr.io/a/b" + d,
		"index.docker.io/alpha": "docker.io/library/alpha:latest",
		"Debian":                "", "a b": "", "": "", "x:" + strings.Repeat("y", 200): "", "a\x1b[31m": "",
	} {
		got, err := image.Normalize(in)
		if got != want || (want == "") != fault.Is(err, fault.Invalid) {
			t.Errorf("Normalize(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestImportFormats(t *testing.T) {
	plain := hello(t).Layout(t, "docker.io/library/hello:1")
	var gz, zs bytes.Buffer
	gw := gzip.NewWriter(&gz)
	_, _ = gw.Write(plain)
	_ = gw.Close()
	zw, err := zstd.NewWriter(&zs)
	check(t, err)
	_, _ = zw.Write(plain)
	_ = zw.Close()
	for name, body := range map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		t.Run(name, func(t *testing.T) {
			rig, s := node(t)
			imgs, err := s.Import(t.Context(), bytes.NewReader(body), "")
			check(t, err)
			if len(imgs) != 1 || len(imgs[0].References) != 1 || imgs[0].References[0] != "docker.io/library/hello:1" {
				t.Fatalf("imported %v", imgs)
			}
			rig.Collect(t) // what was imported must be held by its name alone
			f, err := s.Lookup(t.Context(), "hello:1", "")
			check(t, err)
			if f.Config.Config.Cmd[0] != "/hello" {
				t.Fatalf("config %v", f.Config)
			}
			if os.Getuid() == 0 && rig.Snapshots(t) != 2 {
				t.Fatalf("%d snapshots after import, want 2", rig.Snapshots(t))
			}
		})
	}
}

func TestExportImportRoundTrip(t *testing.T) {
	_, a := node(t)
	_, err := a.Import(t.Context(), bytes.NewReader(hello(t).Layout(t, "")), "hello:2")
	check(t, err)
	var out bytes.Buffer
	check(t, a.Export(t.Context(), &out, []string{"hello:2"}, ""))
	rig, b := node(t)
	imgs, err := b.Import(t.Context(), bytes.NewReader(out.Bytes()), "")
	check(t, err)
	want, err := a.Inspect(t.Context(), "hello:2", "")
	check(t, err)
	if imgs[0].Digest != want.Image.Digest || imgs[0].References[0] != "docker.io/library/hello:2" {
		t.Fatalf("got %v, want %v", imgs[0], want.Image)
	}
	_, err = b.Remove(t.Context(), "hello:2", false, nil)
	check(t, err)
	clean(t, rig)
}

// dockerArchive is what docker save wrote before it knew OCI: layers in folders, one of them a link.
func dockerArchive(t testing.TB, s *imagetest.Sample, manifest string) []byte {
	files := []imagetest.File{file("abc/layer.tar", string(s.Blobs[s.Layers[0].Digest])), file("config.json", string(s.Blobs[s.Config.Digest]))}
	files = append(files, file("abc/VERSION", "1.0"), file("def/layer.tar", string(s.Blobs[s.Layers[1].Digest])))
	link := imagetest.File{Header: tar.Header{Name: "ghi/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../def/layer.tar"}}
	return imagetest.Tar(t, append(files, link, file("manifest.json", manifest))...)
}

func TestImportDockerArchive(t *testing.T) {
	body := dockerArchive(t, hello(t), `[{"Config":"config.json","RepoTags":["hello:old","me/hello"],"Layers":["abc/layer.tar","ghi/layer.tar"]}]`)
	rig, s := node(t)
	imgs, err := s.Import(t.Context(), bytes.NewReader(body), "")
	check(t, err)
	if len(imgs) != 1 || len(imgs[0].References) != 2 {
		t.Fatalf("imported %v", imgs)
	}
	_, err = s.Remove(t.Context(), imgs[0].Digest, false, nil)
	check(t, err)
	clean(t, rig)
}

func TestImportRefusesAndLeavesNothing(t *testing.T) {
	s := hello(t)
	good := s.Layout(t, "docker.io/library/hello:1")
	flipped := bytes.Clone(good)
	i := bytes.Index(flipped, s.Blobs[s.Layers[1].Digest][20:40])
	flipped[i] ^= 1
	wrongDiff := hello(t)
	wrongDiff.Blobs[wrongDiff.Layers[0].Digest], wrongDiff.Layers[0] = nil, wrongDiff.Layers[1]
	lacking := hello(t)
	delete(lacking.Blobs, lacking.Layers[1].Digest)
	bomb := imagetest.Tar(t, file("x", strings.Repeat("\x00", 3<<20)))
	var zipped bytes.Buffer
	gw := gzip.NewWriter(&zipped)
	_, _ = gw.Write(bomb)
	_ = gw.Close()
	var small bytes.Buffer
	gw = gzip.NewWriter(&small)
	_, _ = gw.Write(good)
	_ = gw.Close()
	entry := func(h tar.Header) []byte { return imagetest.Tar(t, imagetest.File{Header: h}) }
	manifest := func(m string) []byte { return dockerArchive(t, s, m) }
	for name, c := range map[string]struct {
		body []byte
		kind fault.Kind
	}{
		"empty":            {nil, fault.Invalid},
		"not an archive":   {[]byte(strings.Repeat("hello", 200)), fault.Corrupt},
		"cut":              {good[:len(good)/2], fault.Corrupt},
		"flipped bit":      {flipped, fault.Corrupt},
		"layer missing":    {lacking.Layout(t, "hello:1"), fault.Corrupt},
		"parent folder":    {entry(tar.Header{Name: "../x"}), fault.Invalid},
		"absolute":         {entry(tar.Header{Name: "/etc/x"}), fault.Invalid},
		"device":           {entry(tar.Header{Name: "x", Typeflag: tar.TypeBlock}), fault.Invalid},
		"hard link":        {entry(tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}), fault.Invalid},
		"link out":         {entry(tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "../etc/shadow"}), fault.Invalid},
		"absolute link":    {entry(tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}), fault.Invalid},
		"twice":            {imagetest.Tar(t, file("index.json", "{}"), file("index.json", "{}")), fault.Invalid},
		"bad blob name":    {imagetest.Tar(t, file("blobs/sha256/../../x", "")), fault.Invalid},
		"blob name short":  {imagetest.Tar(t, file("blobs/sha256/abc", "")), fault.Invalid},
		"bomb":             {zipped.Bytes(), fault.Exhausted},
		"cut checksum":     {small.Bytes()[:small.Len()-4], fault.Corrupt},
		"wrong checksum":   {append(bytes.Clone(small.Bytes()[:small.Len()-8]), "checksum"...), fault.Corrupt},
		"wrong sha512":     {imagetest.Tar(t, file("blobs/sha512/"+strings.Repeat("a", 128), "x")), fault.Corrupt},
		"dangling link":    {manifest(`[{"Config":"config.json","Layers":["zzz"]}]`), fault.Corrupt},
		"bad name":         {s.Layout(t, "UPPER:\x1b[31m"), fault.Invalid},
		"no image":         {manifest(`[]`), fault.Invalid},
		"bad manifest":     {manifest(`{`), fault.Corrupt},
		"layers too few":   {manifest(`[{"Config":"config.json","Layers":["abc/layer.tar"]}]`), fault.Corrupt},
		"layers exchanged": {manifest(`[{"Config":"config.json","Layers":["ghi/layer.tar","abc/layer.tar"]}]`), fault.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "layers ") && os.Getuid() != 0 {
				t.Skip("unpacking needs root")
			}
			rig, s := node(t, func(o *image.Options) { o.MaxImport = 1 << 20 })
			_, err := s.Import(t.Context(), bytes.NewReader(c.body), "")
			if !fault.Is(err, c.kind) {
				t.Errorf("got %v (%s), want %s", err, fault.KindOf(err), c.kind)
			}
			clean(t, rig)
		})
	}
}

func TestImportDiskFull(t *testing.T) {
	huge := tar.Header{Name: "blobs/sha256/" + strings.Repeat("a", 64), Size: 1 << 62, Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatGNU}
	var buf bytes.Buffer
	check(t, tar.NewWriter(&buf).WriteHeader(&huge))
	rig, s := node(t)
	_, err := s.Import(t.Context(), &buf, "")
	if !fault.Is(err, fault.Exhausted) || fault.HintOf(err) == "" {
		t.Fatalf("got %v (%s)", err, fault.KindOf(err))
	}
	clean(t, rig)
}

func TestTagMoveRemovePrune(t *testing.T) {
	rig, s := node(t)
	ctx := t.Context()
	for i, ref := range []string{"app:1", "app:2"} {
		sample := imagetest.NewSample(t, v1.ImageConfig{}, []imagetest.File{file("n", strings.Repeat("x", i+1))})
		_, err := s.Import(ctx, bytes.NewReader(sample.Layout(t, "")), ref)
		check(t, err)
	}
	one, _, err := s.Resolve(ctx, "app:1", "")
	check(t, err)
	check(t, s.Tag(ctx, "app:2", "app:1")) // moves the name away from the first image
	again, _, err := s.Resolve(ctx, "app@"+one.Digest, "")
	check(t, err)
	if again.Digest != one.Digest {
		t.Fatalf("the image a release wants by digest is gone: %v", again)
	}
	if _, err := s.Remove(ctx, one.Digest[7:19], false, func(string) string { return "instance web.1" }); !fault.Is(err, fault.Conflict) {
		t.Fatalf("removed an image in use: %v", err)
	}
	pruned, err := s.Prune(ctx, false, func(_, d string) bool { return d == one.Digest })
	check(t, err)
	if len(pruned.Removed) != 0 {
		t.Fatalf("pruned what a release keeps: %v", pruned)
	}
	pruned, err = s.Prune(ctx, false, nil)
	check(t, err)
	if len(pruned.Removed) != 1 || pruned.Reclaimed <= 0 {
		t.Fatalf("pruned %v", pruned)
	}
	r, err := s.Remove(ctx, "app:1", false, func(string) string { return "instance web.1" })
	check(t, err) // another name is left
	if len(r.Untagged) != 1 || len(r.Deleted) != 0 {
		t.Fatalf("removed %v", r)
	}
	list, err := s.List(ctx, "app*")
	check(t, err)
	if len(list) != 1 || len(list[0].References) != 1 {
		t.Fatalf("list %v", list)
	}
	_, err = s.Prune(ctx, true, nil)
	check(t, err)
	clean(t, rig)
	if _, err := s.Remove(ctx, "app:2", false, nil); !fault.Is(err, fault.NotFound) || !strings.Contains(fault.HintOf(err), "image pull app:2") {
		t.Fatalf("removed twice: %v", err)
	}
}

func TestInspect(t *testing.T) {
	_, s := node(t)
	_, err := s.Import(t.Context(), bytes.NewReader(hello(t).Layout(t, "")), "")
	check(t, err)
	list, err := s.List(t.Context(), "")
	check(t, err)
	if len(list) != 1 || len(list[0].References) != 0 || list[0].Labels["is"] != "small" {
		t.Fatalf("list %v", list)
	}
	for _, ref := range []string{list[0].Digest, list[0].Digest[7:15], list[0].ConfigDigest, list[0].ConfigDigest[7:17]} {
		r, err := s.Inspect(t.Context(), ref, "")
		check(t, err)
		if len(r.History) != 2 || r.History[0].CreatedBy == "" || r.History[1].Layer == "" || len(r.Config) == 0 || len(r.Manifest) == 0 {
			t.Fatalf("inspect %v", r)
		}
	}
	if _, err := s.Inspect(t.Context(), list[0].Digest, "linux/s390x"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("found an image for another platform: %v", err)
	}
}

func TestKeepsWhatIsUnpacked(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("unpacking needs root")
	}
	rig, s := node(t)
	_, err := s.Import(t.Context(), bytes.NewReader(hello(t).Layout(t, "")), "hello")
	check(t, err)
	chain, err := s.Unpack(t.Context(), "hello", "")
	check(t, err)
	rig.Collect(t)
	if _, err := rig.Snapshotter.Stat(rig.Context(t), chain.String()); err != nil {
		t.Fatal(err)
	}
	check(t, rig.Snapshotter.Remove(rig.Context(t), chain.String()))
	again, err := s.Unpack(t.Context(), "hello", "")
	check(t, err)
	rig.Collect(t)
	if _, err := rig.Snapshotter.Stat(rig.Context(t), again.String()); err != nil || again != chain {
		t.Fatal(again, err)
	}
}

func leaseCount(t *testing.T, rig *imagetest.Rig) int {
	var ls []leases.Lease
	ls, err := rig.Leases.List(rig.Context(t))
	check(t, err)
	return len(ls)
}

func FuzzImport(f *testing.F) {
	s := imagetest.NewSample(f, v1.ImageConfig{}, []imagetest.File{file("x", "y")})
	f.Add(s.Layout(f, "hello:1"))
	f.Add(dockerArchive(f, imagetest.NewSample(f, v1.ImageConfig{}, []imagetest.File{file("x", "y")}, []imagetest.File{file("z", "y")}),
		`[{"Config":"config.json","RepoTags":["hello:old"],"Layers":["abc/layer.tar","ghi/layer.tar"]}]`))
	rig := imagetest.New(f)
	svc, err := image.New(image.Options{Content: rig.Content, Images: rig.Images, Leases: rig.Leases, Root: rig.Root + "/images", MaxImport: 1 << 20})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		imgs, err := svc.Import(t.Context(), bytes.NewReader(body), "")
		if err != nil && (fault.KindOf(err) == fault.Internal || fault.KindOf(err) == fault.Unknown) {
			t.Fatalf("an archive's fault is called ours: %v", err)
		}
		for _, img := range imgs {
			if _, err := svc.Inspect(t.Context(), img.Digest, ""); err != nil && !fault.Is(err, fault.NotFound) {
				t.Fatalf("imported, but not readable: %v", err)
			}
		}
		if _, err := svc.Prune(t.Context(), true, nil); err != nil {
			t.Fatal(err)
		}
		if blobs, writes := rig.Blobs(t); blobs+writes != 0 {
			t.Fatalf("left over: %d blobs, %d writes", blobs, writes)
		}
	})
}

// TestExportForDocker reads an export as docker load does: by manifest.json, not by the OCI index.
func TestExportForDocker(t *testing.T) {
	_, s := node(t)
	_, err := s.Import(t.Context(), bytes.NewReader(hello(t).Layout(t, "")), "hello:2")
	check(t, err)
	check(t, s.Tag(t.Context(), "hello:2", "me/hello:3"))
	var out bytes.Buffer
	check(t, s.Export(t.Context(), &out, []string{"hello:2", "me/hello:3"}, ""))
	for _, n := range []string{"hello:2", "me/hello:3"} {
		tag, err := name.NewTag(n)
		check(t, err)
		img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil }, &tag)
		check(t, err)
		check(t, validate.Image(img))
		cfg, err := img.ConfigFile()
		check(t, err)
		if cfg.Config.Cmd[0] != "/hello" {
			t.Errorf("%s: config %v", n, cfg.Config)
		}
	}
}
