package build

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// shelf has one blob and counts what is written.
type shelf struct {
	content.Store
	blob    content.Info
	written int
}

func (s *shelf) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	if d != s.blob.Digest {
		return content.Info{}, errdefs.ErrNotFound
	}
	return s.blob, nil
}

func (s *shelf) Update(_ context.Context, info content.Info, _ ...string) (content.Info, error) {
	s.written++
	return info, nil
}

func TestOnlyNewLabelsAreWritten(t *testing.T) {
	there, other := digest.FromString("there"), digest.FromString("other")
	for name, test := range map[string]struct {
		digest  digest.Digest
		labels  map[string]string
		paths   []string
		written bool
	}{
		"the same":               {there, map[string]string{"a": "1"}, []string{"labels.a"}, false},
		"the same of two":        {there, map[string]string{"a": "1", "b": "2"}, []string{"labels.a"}, false},
		"another value":          {there, map[string]string{"a": "2"}, []string{"labels.a"}, true},
		"a new one":              {there, map[string]string{"a": "1", "b": "2"}, []string{"labels.a", "labels.b"}, true},
		"one less":               {there, nil, []string{"labels.a"}, true},
		"one that was not there": {there, nil, []string{"labels.c"}, false},
		"all labels":             {there, map[string]string{"a": "1"}, []string{"labels"}, true},
		"everything":             {there, map[string]string{"a": "1"}, nil, true},
		"a blob that is gone":    {other, map[string]string{"a": "1"}, []string{"labels.a"}, true},
	} {
		s := &shelf{blob: content.Info{Digest: there, Labels: map[string]string{"a": "1"}}}
		if _, err := (thriftyContent{s}).Update(t.Context(), content.Info{Digest: test.digest, Labels: test.labels}, test.paths...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if written := s.written == 1; written != test.written {
			t.Errorf("%s: written %v", name, written)
		}
	}
}
