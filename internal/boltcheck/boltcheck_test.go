package boltcheck_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/boltcheck"
)

// made is a file with some thousand keys in nested buckets.
func made(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		top, err := tx.CreateBucket([]byte("top"))
		if err != nil {
			return err
		}
		below, err := top.CreateBucket([]byte("below"))
		for i := 0; i < 800 && err == nil; i++ {
			err = errors.Join(top.Put(fmt.Appendf(nil, "key %06d", i), bytes.Repeat([]byte("v"), 40)), below.Put(fmt.Appendf(nil, "%d", i), []byte("x")))
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhole(t *testing.T) {
	keys := 0
	err := boltcheck.File(made(t), func(bucket, _, _ []byte) error {
		if string(bucket) != "top" {
			return fmt.Errorf("bucket %q", bucket)
		}
		keys++
		return nil
	})
	if err != nil || keys != 1600 {
		t.Errorf("%d keys, %v", keys, err)
	}
}

// TestDamaged breaks the file's pages one after another. What is found is said and never panics; a page that nothing leads to
// may be anything.
func TestDamaged(t *testing.T) {
	path := made(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for at := 0; at < len(whole); at += os.Getpagesize() {
		for _, harm := range []func([]byte){
			func(b []byte) { clear(b[at:min(at+os.Getpagesize(), len(b))]) },
			func(b []byte) { b[at+8] ^= 0xff },
			func(b []byte) { b[at+11] ^= 0x40 },
		} {
			damaged := bytes.Clone(whole)
			harm(damaged)
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := boltcheck.File(path, nil); err != nil && !fault.Is(err, fault.Corrupt) {
				t.Errorf("at %d: %v", at, err)
			} else if err != nil {
				found++
			}
		}
	}
	if pages := len(whole) / os.Getpagesize(); found < pages {
		t.Errorf("%d of %d harms were found", found, 3*pages)
	}
	if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := boltcheck.File(path, nil); !fault.Is(err, fault.Corrupt) {
		t.Errorf("cut: %v", err)
	}
}

func TestNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := boltcheck.File(path, nil); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := boltcheck.File(path, nil); err != nil {
		t.Errorf("empty, as a crash at the first start leaves it: %v", err)
	}
	wrong := errors.New("a value is wrong")
	if err := boltcheck.File(made(t), func(_, _, _ []byte) error { return wrong }); !fault.Is(err, fault.Corrupt) || !errors.Is(err, wrong) {
		t.Error(err)
	}
}
