package compose

import (
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
)

// The matrix has every key that the loader's schema knows, and no other.
func TestMatrixHoldsTheSchema(t *testing.T) {
	var known []string
	for _, p := range schema.AttributePaths() {
		known = append(known, string(p))
	}
	exact, deep := map[string]bool{}, map[string]bool{}
	for _, e := range Matrix() {
		if base, ok := strings.CutSuffix(e.Path, ".**"); ok {
			deep[base] = true
			if e.Support == Supported {
				t.Errorf("%s: a supported key must list every key below it", e.Path)
			}
			if !slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, base+".") }) {
				t.Errorf("%s: the schema has nothing below this key", e.Path)
			}
			if !slices.Contains(known, base) {
				t.Errorf("%s: the schema has no such key", base)
			}
			continue
		}
		if exact[e.Path] {
			t.Errorf("%s is in the matrix twice", e.Path)
		}
		exact[e.Path] = true
		if !slices.Contains(known, e.Path) {
			t.Errorf("%s: the schema has no such key", e.Path)
		}
	}
	for _, k := range known {
		if !exact[k] && !coveredBy(k, deep) {
			t.Errorf("%s is in the schema and not in the matrix", k)
		}
	}
}

func coveredBy(key string, deep map[string]bool) bool {
	for base := range deep {
		if key == base || strings.HasPrefix(key, base+".") {
			return true
		}
	}
	return false
}

func TestEveryUnsupportedKeyHasAReason(t *testing.T) {
	for _, e := range Matrix() {
		if e.Support != Supported && e.Note == "" {
			t.Errorf("%s is %s without a reason", e.Path, e.Support)
		}
	}
}
