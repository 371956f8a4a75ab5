package keep_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/engine/keep"
	"github.com/gantryd/gantry/fault"
)

type record struct{ ID string }

func TestConfig(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte("hosts"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got record
	mine := func() bool { return got.ID == "c" }
	if err := keep.Config(dir, &got, mine); !keep.Missing(err) {
		t.Errorf("before it is finished: %v", err)
	}
	if err := keep.Finish(dir, record{"c"}); err != nil {
		t.Fatal(err)
	}
	if err := keep.Config(dir, &got, mine); err != nil || got.ID != "c" {
		t.Errorf("%+v, %v", got, err)
	}
	refused := func(what string) {
		t.Helper()
		err := keep.Config(dir, &got, mine)
		if !fault.Is(err, fault.Corrupt) || keep.Missing(err) || !strings.Contains(fault.HintOf(err), dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := keep.Finish(dir, record{"other"}); err != nil {
		t.Fatal(err)
	}
	refused("another's")
	if err := os.Truncate(filepath.Join(dir, "container.json"), 0); err != nil {
		t.Fatal(err)
	}
	refused("cut")
}

func TestState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	var got record
	if err := keep.State(path, record{"a"}); err != nil || keep.ReadState(path, &got) != nil || got.ID != "a" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keep.ReadState(path, &got); !fault.Is(err, fault.Corrupt) {
		t.Errorf("half of it: %v", err)
	}
	if err := keep.State(filepath.Join(path, "no"), record{}); err == nil {
		t.Error("written below a file")
	}
}
