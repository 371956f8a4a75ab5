package image_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"

	"github.com/gantryd/gantry/engine/image"
	"github.com/gantryd/gantry/engine/image/imagetest"
)

// successor is the service of the next daemon on the same stores.
func successor(t *testing.T, rig *imagetest.Rig) *image.Service {
	t.Helper()
	o := image.Options{Content: rig.Content, Images: rig.Images, Leases: rig.Leases, Root: rig.Root + "/images"}
	o.Snapshotter, o.Applier = rig.Snapshotter, rig.Applier
	s, err := image.New(o)
	check(t, err)
	return s
}

func TestRecoverFromAnImport(t *testing.T) {
	rig, s := node(t)
	if rig.Snapshotter == nil {
		t.Skip("snapshots need root")
	}
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() { _, err := s.Import(t.Context(), out, ""); ended <- err }()
	archive := hello(t).Layout(t, "hello:1")
	_, err := io.Copy(in, bytes.NewReader(archive[:len(archive)-3000]))
	check(t, err)
	ls, err := rig.Leases.List(rig.Context(t))
	check(t, err)
	if len(ls) != 1 {
		t.Fatalf("the import holds %d leases, want 1", len(ls))
	}
	_, err = rig.Snapshotter.Prepare(leases.WithLease(rig.Context(t), ls[0].ID), "extract-123-abcd sha256:0", "")
	check(t, err)

	upload, err := rig.Leases.Create(rig.Context(t), leases.WithID("registry-upload-1"), leases.WithExpiration(time.Hour))
	check(t, err)
	_, err = rig.Leases.Create(rig.Context(t), leases.WithRandomID(), leases.WithExpiration(time.Hour)) // as containerd takes one
	check(t, err)

	check(t, successor(t, rig).Recover(t.Context()))
	if left := leaseCount(t, rig) + rig.Snapshots(t); left != 1 {
		t.Errorf("%d leases and snapshots are left of actions that nobody can go on with and of an upload", left)
	}
	check(t, rig.Leases.Delete(rig.Context(t), upload))
	check(t, in.CloseWithError(errors.New("killed")))
	if <-ended == nil {
		t.Error("a cut archive passed")
	}
	clean(t, rig)
}

func TestRecoverFromAPull(t *testing.T) {
	rig, s := node(t)
	r := serve(t, big(t))
	begun, killed := make(chan struct{}, 1), make(chan struct{})
	r.hook = func(w http.ResponseWriter, q *http.Request) bool {
		select {
		case begun <- struct{}{}:
		default:
		}
		<-killed
		return false
	}
	ended := make(chan error, 1)
	go func() { _, err := pull(t, s, r.host()+"/big"); ended <- err }()
	<-begun

	check(t, successor(t, rig).Recover(t.Context()))
	ls, err := rig.Leases.List(rig.Context(t))
	check(t, err)
	if len(ls) != 1 {
		t.Fatalf("%d leases keep what a killed pull has, want 1", len(ls))
	}
	end, err := time.Parse(time.RFC3339Nano, ls[0].Labels["containerd.io/gc.expire"])
	if err != nil || time.Until(end) > time.Hour {
		t.Errorf("what a killed pull has is kept until %s (%v), and of one that failed for an hour", end, err)
	}
	close(killed)
	<-ended
	_, err = pull(t, s, r.host()+"/big")
	check(t, err)
	if left := leaseCount(t, rig); left != 0 {
		t.Errorf("%d leases are left after a pull that worked", left)
	}
}
