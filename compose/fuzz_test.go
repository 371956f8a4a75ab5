package compose

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/fault"
)

// Whatever is in the file, loading ends soon, with a spec or with a fault that is fit for a terminal.
func FuzzLoad(f *testing.F) {
	seeds, err := filepath.Glob("testdata/every/*.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, s := range seeds {
		b, err := os.ReadFile(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	for _, s := range []string{
		"services: {a: {image: x, ports: ['80-90:80-90/udp']}}", "include: [compose.yaml]", "x: &a [*a]",
		"services:\n  a: {extends: b}\n  b: {extends: a}\n", "services: {a: {image: '${A:-${B:?c}}'}}", "a: !reset\n---\nservices: !override {}",
		"services: {a: &x {image: y, <<: *x}}", "services: {a: {image: x, tmpfs: ['/a:size=1,mode=7'], x-gantry: {version: 1.0.0}}}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, yaml string) {
		if strings.Contains(yaml, "/dev/") || strings.Contains(yaml, "/proc/") {
			t.Skip("whatever the machine has there is not ours to try")
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		p, err := Load(context.Background(), Options{ProjectDir: dir, ProjectName: "fuzz"})
		if took := time.Since(start); took > 20*time.Second {
			t.Fatalf("took %v", took)
		}
		switch {
		case err == nil && p.Spec == nil:
			t.Fatal("neither a spec nor an error")
		case err != nil && fault.KindOf(err) == fault.Unknown:
			t.Fatalf("an error without a kind: %v", err)
		case err != nil && strings.ContainsAny(err.Error(), "\x1b\x00\x07"):
			t.Fatalf("control characters in %q", err)
		}
	})
}
