package server_test

import (
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// appDigest is an image that only n2 has in these tests, as app:1.
var appDigest = "sha256:" + strings.Repeat("a", 64)

func withApp(t *testing.T, up bool) (*platform, map[string]*remoteNode) {
	t.Helper()
	p, nodes := three(t, up)
	nodes["n2"].images = []*gantryv1.Image{{Digest: appDigest, References: []string{"docker.io/library/app:1"}}}
	return p, nodes
}

func (p *platform) listImages(t *testing.T, node string) string {
	t.Helper()
	resp, err := p.images.List(t.Context(), connect.NewRequest(&gantryv1.ListImagesRequest{Node: node}))
	if err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, image := range resp.Msg.Images {
		out += image.Digest[:8] + " " + strings.Join(image.Nodes, ",") + ";"
	}
	for _, f := range resp.Msg.Failures {
		out += "not " + f.Name + ";"
	}
	return out
}

func TestImagesAreListedWithTheirNodes(t *testing.T) {
	p, _ := withApp(t, true)
	if got := p.listImages(t, ""); got != "sha256:a name-n2;sha256:5 name-n2,name-n3,one;sha256:6 name-n2,name-n3,one;" {
		t.Errorf("of three machines: %s", got)
	}
	if got := p.listImages(t, "name-n3"); got != "sha256:5 name-n3;sha256:6 name-n3;" {
		t.Errorf("of one of them: %s", got)
	}
	if _, err := p.images.List(t.Context(), connect.NewRequest(&gantryv1.ListImagesRequest{Node: "no"})); !fault.Is(wire.Decode(err), fault.NotFound) {
		t.Errorf("of none of them: %v", err)
	}
	err := p.store.Update(t.Context(), func(tx *store.Tx) error {
		store.Delete[*gantryv1.Node](tx, "n2")
		store.Delete[*gantryv1.Node](tx, "n3")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.listImages(t, ""); got != "sha256:5 ;sha256:6 ;" {
		t.Errorf("of a machine that stands alone: %s", got)
	}
}

// TestListsDoNotWaitForTheDead has a machine that does not answer, which is then found to be down.
func TestListsDoNotWaitForTheDead(t *testing.T) {
	p, _ := withApp(t, false)
	if got := p.listImages(t, ""); !strings.HasSuffix(got, "one;not name-n3;") {
		t.Errorf("one does not answer: %s", got)
	}
	p.store.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("n3"), State: "down"}}, nil)
	if got := p.listImages(t, ""); strings.Contains(got, "n3") {
		t.Errorf("one is down: %s", got)
	}
}

func TestImageOfAnotherMachineIsInspected(t *testing.T) {
	p, nodes := withApp(t, true)
	nodes["n2"].images[0].Digest = "sha256:5" // which n2 is known to hold
	resp, err := p.images.Inspect(t.Context(), connect.NewRequest(&gantryv1.InspectImageRequest{Image: "sha256:5"}))
	if err != nil || !slices.Equal(resp.Msg.Image.Nodes, []string{"name-n2"}) {
		t.Errorf("%v, %v", resp, err)
	}
	_, err = p.images.Inspect(t.Context(), connect.NewRequest(&gantryv1.InspectImageRequest{Image: "no:1"}))
	if !fault.Is(wire.Decode(err), fault.NotFound) {
		t.Errorf("what nobody has: %v", err)
	}
}

func TestImageIsRemovedEverywhere(t *testing.T) {
	p, nodes := withApp(t, true)
	nodes["n3"].images = []*gantryv1.Image{{Digest: appDigest}}
	remove := func(force bool) (*gantryv1.RemoveImageResponse, error) {
		resp, err := p.images.Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveImageRequest{Image: "app:1", Force: force}))
		if err != nil {
			return nil, wire.Decode(err)
		}
		return resp.Msg, nil
	}
	release := &gantryv1.Release{
		Meta: store.NewMeta(progress.ReleaseKey("production/shop/web", 1)), Service: "production/shop/web", Number: 1,
		Spec: &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Image: "app:1", ImageDigest: appDigest}},
	}
	p.put(t, release)
	if _, err := remove(false); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "release 1 of service production/shop/web") {
		t.Errorf("what a release needs: %v", err)
	}
	if len(nodes["n2"].told) > 0 {
		t.Errorf("it was removed: %v", nodes["n2"].told)
	}
	if _, err := remove(true); err != nil || !slices.Equal(nodes["n3"].told, []string{appDigest}) || !slices.Equal(nodes["n2"].told, []string{appDigest}) {
		t.Errorf("with force: %v, n2 was told %v, n3 %v", err, nodes["n2"].told, nodes["n3"].told)
	}
	if len(nodes[nodeID].told) > 0 {
		t.Errorf("one that does not have it was told %v", nodes[nodeID].told)
	}
	p.store.Observe([]store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("n3"), State: "down"}}, nil)
	err := p.store.Update(t.Context(), func(tx *store.Tx) error {
		store.Delete[*gantryv1.Release](tx, release.Meta.Key)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := remove(false)
	if err != nil || !slices.Equal(got.Deleted, []string{appDigest}) || len(got.Failures) != 1 || got.Failures[0].Name != "name-n3" {
		t.Errorf("with a machine that is down: %v, %v", got, err)
	}
	if _, err := p.images.Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveImageRequest{Image: "no:1"})); !fault.Is(wire.Decode(err), fault.NotFound) {
		t.Errorf("what nobody has: %v", err)
	}
}
