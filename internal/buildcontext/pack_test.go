package buildcontext_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/buildcontext"
)

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func pack(t *testing.T, dir, dockerfile string) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := buildcontext.Pack(t.Context(), dir, dockerfile, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func headers(t *testing.T, stream []byte) (all []tar.Header) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(stream))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, *h)
	}
}

func names(t *testing.T, stream []byte) string {
	var out []string
	for _, h := range headers(t, stream) {
		out = append(out, h.Name)
	}
	return strings.Join(out, " ")
}

func TestIgnoreRules(t *testing.T) {
	files := map[string]string{"Dockerfile": "", "a": "", "b.log": "", "sub/c.log": "", "sub/d": "", "node_modules/x/y": "", "node_modules/keep/z": ""}
	for _, c := range []struct{ name, ignore, want string }{
		{"none", "", "Dockerfile a b.log node_modules/ node_modules/keep/ node_modules/keep/z node_modules/x/ node_modules/x/y sub/ sub/c.log sub/d"},
		{"directory", "node_modules\n# comment\n", ".dockerignore Dockerfile a b.log sub/ sub/c.log sub/d"},
		{"exception below", "node_modules\n!node_modules/keep\nsub\n", ".dockerignore Dockerfile a b.log node_modules/keep/ node_modules/keep/z"},
		{"exception with a wildcard", "node_modules\n!**/z\nsub\n", ".dockerignore Dockerfile a b.log node_modules/keep/z"},
		{"everywhere", "**/*.log\nnode_modules", ".dockerignore Dockerfile a sub/ sub/d"},
		{"top only", "*.log\nnode_modules", ".dockerignore Dockerfile a sub/ sub/c.log sub/d"},
		{"everything", "*", ".dockerignore Dockerfile"},
		{"everything but one", "*\n!sub/d\n", ".dockerignore Dockerfile sub/d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tree(t, files)
			if c.ignore != "" {
				if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte(c.ignore), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := names(t, pack(t, dir, "")); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestDockerfilesOwnIgnoreFile(t *testing.T) {
	dir := tree(t, map[string]string{"x/Prod": "", "x/Prod.dockerignore": "a\nx\n", ".dockerignore": "b\n", "a": "", "b": ""})
	if got := names(t, pack(t, dir, "x/Prod")); got != ".dockerignore b x/Prod x/Prod.dockerignore" {
		t.Errorf("got %s", got)
	}
	outside := tree(t, map[string]string{"Dockerfile": "", "Dockerfile.dockerignore": "a\n"})
	if got := names(t, pack(t, dir, filepath.Join(outside, "Dockerfile"))); got != "b x/ x/Prod x/Prod.dockerignore" {
		t.Errorf("got %s", got)
	}
}

func TestSameTreeSameBytes(t *testing.T) {
	dir := tree(t, map[string]string{"b": "1", "a/c": "2"})
	when := time.Unix(1_600_000_000, 987_654_321)
	path := filepath.Join(dir, "a/c")
	if err := errors.Join(os.Lchown(path, 12, 34), os.Chmod(path, 0o711|os.ModeSetuid), os.Chtimes(path, when, when), os.Symlink("/etc/passwd", filepath.Join(dir, "l"))); err != nil && os.Getuid() == 0 {
		t.Fatal(err)
	}
	one := pack(t, dir, "")
	if !bytes.Equal(one, pack(t, dir, "")) {
		t.Error("two packs differ")
	}
	all := headers(t, one)
	i := slices.IndexFunc(all, func(h tar.Header) bool { return h.Name == "a/c" })
	h := all[i]
	if h.Mode != 0o4711 || !h.ModTime.Equal(when) || h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
		t.Errorf("%+v", h)
	}
	if l := all[len(all)-1]; l.Typeflag != tar.TypeSymlink || l.Linkname != "/etc/passwd" {
		t.Errorf("%+v", l)
	}
}

func TestOddFiles(t *testing.T) {
	dir := tree(t, map[string]string{"a": ""})
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := names(t, pack(t, dir, "")); got != "a" {
		t.Errorf("got %s", got)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "p"), 0o644); err != nil {
		t.Fatal(err)
	}
	err = buildcontext.Pack(t.Context(), dir, "", io.Discard)
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.HintOf(err), ".dockerignore") {
		t.Errorf("a pipe: %v", err)
	}
	if err := buildcontext.Pack(t.Context(), filepath.Join(dir, "none"), "", io.Discard); fault.KindOf(err) != fault.NotFound {
		t.Errorf("no directory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := buildcontext.Pack(ctx, dir, "", io.Discard); fault.KindOf(err) != fault.Canceled {
		t.Errorf("canceled: %v", err)
	}
}
