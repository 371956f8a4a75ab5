package build

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
)

// thriftyContent leaves labels alone that already are what they should be: a write is an fsync, and BuildKit labels the
// base image's blobs with where they came from at every build.
type thriftyContent struct{ content.Store }

// Update changes labels of a blob.
func (c thriftyContent) Update(ctx context.Context, info content.Info, fieldpaths ...string) (content.Info, error) {
	if old, err := c.Store.Info(ctx, info.Digest); err == nil && sameLabels(old.Labels, info.Labels, fieldpaths) {
		return old, nil
	}
	return c.Store.Update(ctx, info, fieldpaths...)
}

// sameLabels says whether an update of these fields would change nothing; one of all fields, or of others, might.
func sameLabels(old, wanted map[string]string, fieldpaths []string) bool {
	for _, path := range fieldpaths {
		key, label := strings.CutPrefix(path, "labels.")
		if !label || old[key] != wanted[key] {
			return false
		}
	}
	return len(fieldpaths) > 0
}
