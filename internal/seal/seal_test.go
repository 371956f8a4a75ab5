package seal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/seal"
)

func box(t *testing.T, path string) *seal.Box {
	t.Helper()
	b, err := seal.Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSealedOpensOnlyUnderItsNameAndKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	b := box(t, path)
	sealed, err := b.Seal("p/a/db", []byte("hunter2"))
	if err != nil || bytes.Contains(sealed, []byte("hunter2")) {
		t.Fatalf("sealed %q, %v", sealed, err)
	}
	if plain, err := box(t, path).Open("p/a/db", sealed); err != nil || string(plain) != "hunter2" {
		t.Fatalf("opened %q, %v", plain, err)
	}
	if _, err := b.Open("p/a/other", sealed); !fault.Is(err, fault.Corrupt) {
		t.Fatalf("under another name: %v", err)
	}
	if _, err := box(t, filepath.Join(t.TempDir(), "key")).Open("p/a/db", sealed); !fault.Is(err, fault.Corrupt) {
		t.Fatalf("with another key: %v", err)
	}
	for i := range sealed {
		c := bytes.Clone(sealed)
		c[i] ^= 1
		if _, err := b.Open("p/a/db", c); err == nil {
			t.Fatalf("byte %d flipped and still opened", i)
		}
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := seal.Open(path, false); !fault.Is(err, fault.Corrupt) {
		t.Fatalf("missing key: %v", err)
	}
	box(t, path)
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %o", info.Mode().Perm())
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Open(path, true); !fault.Is(err, fault.Denied) {
		t.Fatalf("key that others can read: %v", err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(path, 0o600)
	if _, err := seal.Open(path, true); !fault.Is(err, fault.Corrupt) {
		t.Fatalf("truncated key: %v", err)
	}
}

func TestFingerprintTellsChange(t *testing.T) {
	b := box(t, filepath.Join(t.TempDir(), "key"))
	x, again, y := b.Fingerprint("a", []byte("x")), b.Fingerprint("a", []byte("x")), b.Fingerprint("a", []byte("y"))
	if x != again || x == y {
		t.Fatal("fingerprints do not tell contents apart")
	}
}
