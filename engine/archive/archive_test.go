package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/engine/archive"
	"github.com/gantryd/gantry/fault"
)

type entry struct {
	h       tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), Uid: os.Getuid(), Gid: os.Getgid()}, content}
}

func link(kind byte, name, target string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777, Uid: os.Getuid(), Gid: os.Getgid()}, ""}
}

func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, Uid: os.Getuid(), Gid: os.Getgid()}, ""}
}

func pack(t *testing.T, entries ...entry) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&e.h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

// jail is a root directory with a precious file beside it.
type jail struct {
	t       *testing.T
	outside string
	path    string
	root    *os.File
}

func newJail(t *testing.T) *jail {
	t.Helper()
	base := t.TempDir()
	j := &jail{t: t, outside: filepath.Join(base, "precious"), path: filepath.Join(base, "root")}
	for _, d := range []string{j.path, filepath.Join(j.path, "in"), filepath.Join(j.path, "etc"), filepath.Join(base, "dir")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	j.write(j.outside, "untouched")
	var err error
	if j.root, err = os.Open(j.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.root.Close() })
	return j
}

func (j *jail) write(path, text string) {
	j.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		j.t.Fatal(err)
	}
}

func (j *jail) symlink(target, name string) {
	j.t.Helper()
	if err := os.Symlink(target, filepath.Join(j.path, name)); err != nil {
		j.t.Fatal(err)
	}
}

func (j *jail) assertWhole() {
	j.t.Helper()
	b, err := os.ReadFile(j.outside)
	var st unix.Stat_t
	if err != nil || string(b) != "untouched" || unix.Stat(j.outside, &st) != nil || st.Nlink != 1 {
		j.t.Errorf("the file outside: %v, %q, %d links", err, b, st.Nlink)
	}
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(j.path), "dir"))
	if err != nil || len(entries) != 0 {
		j.t.Errorf("the directory outside: %v, %v", err, entries)
	}
}

func TestExtractStaysInside(t *testing.T) {
	for name, entries := range map[string]func(j *jail) []entry{
		"dots": func(*jail) []entry {
			return []entry{file("../../precious", "evil"), file("a/../../../precious", "evil")}
		},
		"absolute name":     func(j *jail) []entry { return []entry{file(j.outside, "evil")} },
		"link then file":    func(j *jail) []entry { return []entry{link(tar.TypeSymlink, "l", j.outside), file("l", "evil")} },
		"link to directory": func(j *jail) []entry { return []entry{link(tar.TypeSymlink, "d", "../../dir"), file("d/x", "evil")} },
		"absolute directory link": func(j *jail) []entry {
			return []entry{link(tar.TypeSymlink, "d", filepath.Dir(j.path)), file("d/precious", "evil")}
		},
		"chain of links": func(*jail) []entry {
			return []entry{link(tar.TypeSymlink, "a", ".."), link(tar.TypeSymlink, "b", "a/.."), link(tar.TypeSymlink, "c", "b/.."), file("c/precious", "evil"), file("c/dir/x", "evil")}
		},
		"hard link":         func(j *jail) []entry { return []entry{link(tar.TypeLink, "h", j.outside), file("h", "evil")} },
		"hard link by dots": func(*jail) []entry { return []entry{link(tar.TypeLink, "h", "../../precious"), file("h", "evil")} },
		"hard link to link": func(j *jail) []entry {
			return []entry{link(tar.TypeSymlink, "l", j.outside), link(tar.TypeLink, "h", "l"), file("h", "evil")}
		},
		"directory as link": func(j *jail) []entry {
			return []entry{link(tar.TypeSymlink, "d", "../../dir"), dir("d"), file("d/x", "evil")}
		},
		"proc's magic links": func(*jail) []entry {
			return []entry{link(tar.TypeSymlink, "r", "/proc/self/root"), file("r/tmp/gantry-evil", "evil")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJail(t)
			// It may fail or land somewhere inside; outside nothing changes.
			_ = archive.Extract(t.Context(), j.root, "/in", pack(t, entries(j)...), archive.IDs{})
			j.assertWhole()
			if _, err := os.Stat("/tmp/gantry-evil"); err == nil {
				t.Error("a magic link was followed")
			}
		})
	}
}

func TestLinksInTheRootAreItsOwn(t *testing.T) {
	j := newJail(t)
	j.symlink("/etc", "abs")
	if err := archive.Extract(t.Context(), j.root, "/abs", pack(t, file("passwd", "mine")), archive.IDs{}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(j.path, "etc/passwd")); err != nil || string(b) != "mine" {
		t.Errorf("%v, %q", err, b)
	}
}

func TestDevicesAreRefused(t *testing.T) {
	j := newJail(t)
	e := entry{tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Mode: 0o666, Devmajor: 8}, ""}
	err := archive.Extract(t.Context(), j.root, "/in", pack(t, e), archive.IDs{})
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "sda") {
		t.Errorf("error %v", err)
	}
}

func TestErrorsAreClear(t *testing.T) {
	j := newJail(t)
	if err := archive.Extract(t.Context(), j.root, "/none", pack(t), archive.IDs{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("missing directory: %v", err)
	}
	if err := archive.Extract(t.Context(), j.root, "/in", strings.NewReader(strings.Repeat("garbage", 200)), archive.IDs{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("garbage: %v", err)
	}
	if err := archive.Pack(t.Context(), j.root, "/none", io.Discard, archive.IDs{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("missing path: %v", err)
	}
}

func TestThereAndBack(t *testing.T) {
	j := newJail(t)
	at := time.Unix(1_500_000_000, 0)
	set := file("tree/run", "#!")
	set.h.Mode, set.h.ModTime = 0o4755, at
	tree := dir("tree/")
	tree.h.ModTime = at
	if err := archive.Extract(t.Context(), j.root, "/in", pack(t, tree, set, link(tar.TypeSymlink, "tree/l", "/x"), file("tree/deep/er/f", "f")), archive.IDs{}); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := archive.Pack(t.Context(), j.root, "in/tree", &buf, archive.IDs{}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&buf); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Name == "tree/run" && (h.Mode != 0o4755 || !h.ModTime.Equal(at)) {
			t.Errorf("header %+v", h)
		}
		if h.Name == "tree/" && !h.ModTime.Equal(at) {
			t.Errorf("time of the directory %s", h.ModTime)
		}
		if h.Name == "tree/l" && h.Linkname != "/x" {
			t.Errorf("link to %q", h.Linkname)
		}
	}
	if got := strings.Join(names, " "); got != "tree/ tree/deep/ tree/deep/er/ tree/deep/er/f tree/l tree/run" {
		t.Errorf("entries %s", got)
	}
}

func TestPackFollowsNoLinkOut(t *testing.T) {
	j := newJail(t)
	j.symlink("../../dir", "in/out")
	j.symlink("../precious", "leak")
	j.symlink("/../../precious", "in/abs")
	for _, path := range []string{"/in", "/leak", "/in/abs", "/in/out", "/../precious"} {
		var buf bytes.Buffer
		_ = archive.Pack(t.Context(), j.root, path, &buf, archive.IDs{})
		if strings.Contains(buf.String(), "untouched") {
			t.Errorf("%s leads outside", path)
		}
	}
}

// A container swaps a directory for a link while the daemon unpacks into it.
func TestSwappedDirectory(t *testing.T) {
	j := newJail(t)
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	a, b := filepath.Join(j.path, "in/d"), filepath.Join(j.path, "in/e")
	if err := os.Mkdir(a, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../dir", b); err != nil {
		t.Fatal(err)
	}
	g.Go(func() error {
		for ctx.Err() == nil {
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				return err
			}
		}
		return nil
	})
	for range 2000 {
		_ = archive.Extract(t.Context(), j.root, "/in", pack(t, dir("d"), file("d/x", "evil")), archive.IDs{})
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	j.assertWhole()
}
