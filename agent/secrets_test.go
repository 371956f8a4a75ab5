package agent

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// A daemon that was restarted while no server leads has no contents of secrets. The container still has them, unless the
// machine was restarted too.
func TestSecretsOfTheLastRunAreEnough(t *testing.T) {
	o := enginetest.Options(t)
	e := enginetest.OpenAt(t, o)
	defer enginetest.Close(t, e)
	spec := enginetest.Spec(enginetest.BusyboxImage(t, e), "exec sleep 1000")
	spec.Network = &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_NONE}
	spec.Secrets = []*gantryv1.FileRef{{Source: "p/word", Target: "/run/secrets/word"}}
	as := &gantryv1.Assignment{Instance: &gantryv1.Instance{Meta: store.NewMeta("s"), Slot: 1}, Spec: spec}
	req := engine.CreateRequest{ID: "s", Spec: spec, Files: []engine.File{{Target: "/run/secrets/word", Content: []byte("sesame")}}}
	if err := e.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	w := newWorker(&Agent{Parts: Parts{Engine: e}}, &gantryv1.InstanceRecord{Assignment: as})
	if err := w.refresh(t.Context(), as); err != nil {
		t.Fatalf("with all that it needs: %v", err)
	}
	if _, err := w.files(as); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("a new container without what is in its secrets: %v", err)
	}
	if err := unix.Unmount(filepath.Join(o.Run, "files", "s"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := w.refresh(t.Context(), as); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("after a restart of the machine: %v", err)
	}
	told := &gantryv1.Assignment{Instance: as.Instance, Spec: spec, Secrets: map[string][]byte{"p/word": []byte("sesame")}}
	w.update(told)
	if err := w.refresh(t.Context(), told); err != nil {
		t.Fatalf("with a server: %v", err)
	}
	if have, err := e.HasFiles("s"); err != nil || !have {
		t.Fatalf("its files are there: %v, %v", have, err)
	}
	if err := w.refresh(t.Context(), as); !fault.Is(err, fault.NotFound) {
		t.Fatalf("a server that has no such secret: %v", err)
	}
}
