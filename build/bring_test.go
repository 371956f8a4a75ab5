package build

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
)

// TestBaseOfAnotherMachine builds from an image that only another machine of the cluster has.
func TestBaseOfAnotherMachine(t *testing.T) {
	r := sharedRig(t)
	const base = "elsewhere.test/base:1"
	var asked []string
	r.opts.Bring = func(_ context.Context, ref, _ string) error {
		asked = append(asked, ref)
		ctx := r.context(t)
		there, err := r.images.Get(ctx, "example.test/base:1")
		if err != nil || ref != base {
			return err
		}
		_, err = r.images.Create(ctx, images.Image{Name: base, Target: there.Target})
		return err
	}
	defer func() { r.opts.Bring = nil }()
	r.build(t, "FROM "+base+"\nRUN echo "+t.Name()+" > /x\n", nil)
	equal(t, "images that were looked for", len(asked), 1)
	equal(t, "the image", asked[0], base)
}
