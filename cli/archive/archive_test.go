package archive_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantryd/gantry/cli/archive"
	"github.com/gantryd/gantry/fault"
)

func same(name string) string { return name }

func TestPackAndUnpackGiveTheSameTree(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(src, "sub", "locked"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "sub", "file"), []byte("content"), 0o640))
	must(t, os.WriteFile(filepath.Join(src, "sub", "locked", "x"), []byte("x"), 0o600))
	must(t, os.Chmod(filepath.Join(src, "sub", "locked"), 0o555))
	must(t, os.Symlink("sub/file", filepath.Join(src, "link")))
	var b bytes.Buffer
	must(t, archive.Pack(&b, src, "renamed", false, false))
	must(t, archive.Unpack(&b, dst, same, false))
	data, err := os.ReadFile(filepath.Join(dst, "renamed", "link"))
	if err != nil || string(data) != "content" {
		t.Fatalf("through the link: %q, %v", data, err)
	}
	for name, mode := range map[string]os.FileMode{"sub/file": 0o640, "sub/locked": 0o555 | os.ModeDir, "sub/locked/x": 0o600} {
		info, err := os.Stat(filepath.Join(dst, "renamed", name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// The known tricks: each archive tries to reach the file outside.
func TestNothingLeavesTheTarget(t *testing.T) {
	file := func(name string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o777, Size: 4}
	}
	link := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	for name, entries := range map[string][]*tar.Header{
		"dots":               {file("../outside")},
		"hidden dots":        {file("a/../../outside")},
		"link up":            {link("l", ".."), file("l/outside")},
		"absolute link":      {link("l", "OUTDIR"), file("l/outside")},
		"link to file":       {link("l", "../outside"), {Name: "l", Typeflag: tar.TypeReg, Mode: 0o777, Size: 4}},
		"hard link up":       {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../outside"}, file("h")},
		"hard link absolute": {{Name: "h", Typeflag: tar.TypeLink, Linkname: "OUTDIR/outside"}, file("h")},
		"hard link by link":  {link("l", ".."), {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/outside"}, file("h")},
		"directory by link":  {link("l", ".."), {Name: "l/dir", Typeflag: tar.TypeDir, Mode: 0o777}},
		"device":             {{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"mode by link":       {link("l", "../outside"), {Name: "l", Typeflag: tar.TypeDir, Mode: 0o777}},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			target := filepath.Join(out, "target")
			must(t, os.Mkdir(target, 0o755))
			must(t, os.WriteFile(filepath.Join(out, "outside"), []byte("mine"), 0o600))
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range entries {
				if h.Linkname == "OUTDIR" || h.Linkname == "OUTDIR/outside" {
					h.Linkname = filepath.Join(out, filepath.Base(h.Linkname))
					if filepath.Base(h.Linkname) == "OUTDIR" {
						h.Linkname = out
					}
				}
				must(t, w.WriteHeader(h))
				if h.Typeflag == tar.TypeReg {
					_, err := w.Write([]byte("evil"))
					must(t, err)
				}
			}
			must(t, w.Close())
			err := archive.Unpack(&b, target, same, false)
			data, rerr := os.ReadFile(filepath.Join(out, "outside"))
			info, serr := os.Stat(filepath.Join(out, "outside"))
			if rerr != nil || serr != nil || string(data) != "mine" || info.Mode() != 0o600 {
				t.Fatalf("the file outside is %q %v (unpack said %v)", data, info.Mode(), err)
			}
			left, _ := os.ReadDir(out)
			if len(left) != 2 {
				t.Fatalf("something was made outside: %v", left)
			}
			// Replacing a link that points out is right; all else must be refused.
			if err == nil && name != "link to file" {
				t.Error("it was not refused")
			}
		})
	}
}

func TestDamagedArchive(t *testing.T) {
	if err := archive.Unpack(bytes.NewReader(bytes.Repeat([]byte("x"), 1024)), t.TempDir(), same, false); !fault.Is(err, fault.Corrupt) {
		t.Errorf("got %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
