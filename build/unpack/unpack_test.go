package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/gantryd/gantry/fault"
)

// archive makes a tar stream.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		body := strings.Repeat("x", int(h.Size))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func regular(name string, size int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}
}

func link(kind byte, name, target string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: target}
}

// listing names what is in dir.
func listing(t testing.TB, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			rel, _ := filepath.Rel(dir, path)
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestUnpackKeepsModesAndTimes(t *testing.T) {
	when := time.Unix(1_700_000_000, 123_456_789)
	plain := archive(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o550, ModTime: when, Format: tar.FormatPAX},
		tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o4751, Size: 3, ModTime: when, Format: tar.FormatPAX},
		link(tar.TypeSymlink, "abs", "/etc/passwd"),
		link(tar.TypeLink, "hard", "d/f"),
		regular("./deep/er/file", 1),
	)
	var gz, zst bytes.Buffer
	gw, zw := gzip.NewWriter(&gz), must(zstd.NewWriter(&zst))
	for _, w := range []io.WriteCloser{gw, zw} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
	for name, stream := range map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": zst.Bytes()} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := Tar(t.Context(), bytes.NewReader(stream), dir); err != nil {
				t.Fatal(err)
			}
			fi, err := os.Stat(filepath.Join(dir, "d/f"))
			if err != nil || fi.Mode() != 0o751|fs.ModeSetuid || !fi.ModTime().Equal(when) {
				t.Errorf("file: %v %v %v", fi.Mode(), fi.ModTime(), err)
			}
			fi, err = os.Stat(filepath.Join(dir, "d"))
			if err != nil || fi.Mode().Perm() != 0o550 || !fi.ModTime().Equal(when) {
				t.Errorf("directory: %v %v %v", fi.Mode(), fi.ModTime(), err)
			}
			want := []string{"abs", "d", "d/f", "deep", "deep/er", "deep/er/file", "hard"}
			if got := listing(t, dir); !slices.Equal(got, want) {
				t.Errorf("got %v", got)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestUnpackStaysInside(t *testing.T) {
	for _, c := range []struct {
		name    string
		headers []tar.Header
	}{
		{"parent", []tar.Header{regular("../evil", 1)}},
		{"parent within", []tar.Header{regular("a/../../evil", 1)}},
		{"absolute", []tar.Header{regular("/evil", 1)}},
		{"through an absolute link", []tar.Header{link(tar.TypeSymlink, "l", "OUTSIDE"), regular("l/evil", 1)}},
		{"through a relative link", []tar.Header{link(tar.TypeSymlink, "l", "../outside"), regular("l/evil", 1)}},
		{"through two links", []tar.Header{link(tar.TypeSymlink, "a", "."), link(tar.TypeSymlink, "a/l", "../outside"), regular("l/evil", 1)}},
		{"directory through a link", []tar.Header{link(tar.TypeSymlink, "l", "../outside"), {Typeflag: tar.TypeDir, Name: "l/evil", Mode: 0o755}}},
		{"mode through a link", []tar.Header{link(tar.TypeSymlink, "l", "../outside"), {Typeflag: tar.TypeDir, Name: "l/canary", Mode: 0o777}}},
		{"hard link outwards", []tar.Header{link(tar.TypeLink, "l", "../outside/canary")}},
		{"absolute hard link", []tar.Header{link(tar.TypeLink, "l", "OUTSIDE/canary")}},
		{"hard link through a link", []tar.Header{link(tar.TypeSymlink, "s", "../outside"), link(tar.TypeLink, "l", "s/canary")}},
		{"hard link to a link", []tar.Header{link(tar.TypeSymlink, "s", "../outside/canary"), link(tar.TypeLink, "l", "s")}},
		{"character device", []tar.Header{{Typeflag: tar.TypeChar, Name: "d", Devmajor: 1, Devminor: 3}}},
		{"block device", []tar.Header{{Typeflag: tar.TypeBlock, Name: "d", Devmajor: 8}}},
		{"pipe", []tar.Header{{Typeflag: tar.TypeFifo, Name: "p"}}},
		{"replaced root", []tar.Header{link(tar.TypeSymlink, ".", "../outside")}},
		{"long name", []tar.Header{regular(strings.Repeat("a/", 4000)+"f", 1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			top := t.TempDir()
			dir, outside := filepath.Join(top, "in"), filepath.Join(top, "outside")
			if err := errors.Join(os.MkdirAll(outside, 0o755), os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(outside, "canary"), nil, 0o644)); err != nil {
				t.Fatal(err)
			}
			for i := range c.headers {
				c.headers[i].Linkname = strings.Replace(c.headers[i].Linkname, "OUTSIDE", outside, 1)
			}
			err := Tar(t.Context(), bytes.NewReader(archive(t, c.headers...)), dir)
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("not refused: %v", err)
			}
			if got := listing(t, outside); !slices.Equal(got, []string{"canary"}) {
				t.Errorf("outside there is %v", got)
			}
			fi, err := os.Stat(filepath.Join(outside, "canary"))
			if err != nil || fi.Mode().Perm() != 0o644 {
				t.Errorf("the canary: %v %v", fi, err)
			}
			if evil, _ := filepath.Glob(filepath.Join(top, "evil")); evil != nil {
				t.Error("written beside the directory")
			}
		})
	}
}

func TestUnpackTakesTheLastOfTwo(t *testing.T) {
	dir := t.TempDir()
	stream := archive(t, regular("a", 1), regular("a", 2), regular("d/x", 1), link(tar.TypeSymlink, "d", "e"),
		tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755}, regular("d/y", 3))
	if err := Tar(t.Context(), bytes.NewReader(stream), dir); err != nil {
		t.Fatal(err)
	}
	if got := listing(t, dir); !slices.Equal(got, []string{"a", "d", "d/y"}) {
		t.Errorf("got %v", got)
	}
	if fi, err := os.Stat(filepath.Join(dir, "a")); err != nil || fi.Size() != 2 {
		t.Errorf("%v %v", fi, err)
	}
}

func TestUnpackRefusesBombsAndDamage(t *testing.T) {
	huge := archive(t, regular("ok", 1))[:1024]
	h := tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Size: maxContextBytes + 1, Mode: 0o644}
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	huge = append(huge, buf.Bytes()...)
	dir := t.TempDir()
	if err := Tar(t.Context(), bytes.NewReader(huge), dir); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a bomb: %v", err)
	}
	for name, stream := range map[string][]byte{
		"cut off":  archive(t, regular("a", 5000))[:3000],
		"rubbish":  []byte(strings.Repeat("not a tar stream ", 100)),
		"bad gzip": {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 'x'},
		"bad zstd": {0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4, 5},
	} {
		if err := Tar(t.Context(), bytes.NewReader(stream), t.TempDir()); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Tar(ctx, bytes.NewReader(archive(t, regular("a", 1))), t.TempDir())
	if fault.KindOf(err) != fault.Canceled {
		t.Errorf("canceled: %v", err)
	}
}

func FuzzTar(f *testing.F) {
	f.Add(archive(f, regular("a/b", 3), link(tar.TypeSymlink, "s", "../x"), link(tar.TypeLink, "h", "a/b"), regular("s/y", 1)))
	f.Add(archive(f, tar.Header{Typeflag: tar.TypeDir, Name: "../d", Mode: 0o755}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		top := t.TempDir()
		dir := filepath.Join(top, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		Tar(t.Context(), bytes.NewReader(stream), dir)
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) != 1 {
			t.Fatalf("outside: %v %v", entries, err)
		}
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if d.IsDir() {
				os.Chmod(path, 0o700)
			}
			return nil
		})
	})
}

func TestUnpackAgainChangesOnlyWhatChanged(t *testing.T) {
	dir := t.TempDir()
	when := time.Unix(1_700_000_000, 5)
	put := func(headers ...tar.Header) {
		t.Helper()
		for i := range headers {
			headers[i].Format = tar.FormatPAX
			if headers[i].ModTime.IsZero() {
				headers[i].ModTime = when
			}
		}
		if err := Tar(t.Context(), bytes.NewReader(archive(t, headers...)), dir); err != nil {
			t.Fatal(err)
		}
	}
	inode := func(name string) uint64 {
		t.Helper()
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t).Ino
	}
	put(regular("same", 70000), regular("longer", 10), regular("touched", 5), regular("gone", 1), regular("olddir/x", 1),
		link(tar.TypeSymlink, "link", "same"), link(tar.TypeSymlink, "was-link", "olddir"), link(tar.TypeLink, "hard", "same"), regular("was-file", 1))
	before := map[string]uint64{"same": inode("same"), "link": inode("link"), "touched": inode("touched")}
	if err := os.WriteFile(filepath.Join(dir, "touched"), []byte("xxyxx"), 0o644); err != nil {
		t.Fatal(err)
	}
	put(regular("same", 70000), regular("longer", 11), regular("touched", 5), link(tar.TypeSymlink, "link", "same"),
		link(tar.TypeLink, "hard", "same"), regular("was-link/y", 2), regular("was-file/z", 3))
	for _, name := range []string{"same", "link"} {
		if inode(name) != before[name] {
			t.Errorf("%s was made anew", name)
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, "touched")); string(data) != "xxxxx" {
		t.Errorf("another content of the same size and time stayed: %q %v", data, err)
	}
	want := []string{"hard", "link", "longer", "same", "touched", "was-file", "was-file/z", "was-link", "was-link/y"}
	if got := listing(t, dir); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
