package catalog_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/server/catalog"
)

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func full(name string) string { return "docker.io/library/" + name }

func image(c string, refs ...string) *gantryv1.Image {
	i := &gantryv1.Image{Digest: digest(c), ConfigDigest: "sha256:c0" + strings.Repeat(c, 62), Size: int64(len(refs)), Platforms: []string{"linux/amd64"}}
	for _, r := range refs {
		if strings.HasPrefix(r, "@") {
			r = "app" + r
		}
		i.References = append(i.References, full(r))
	}
	return i
}

// world: a built app:1 and named it twice, b runs it, c knows app:1 as something else, and has what nobody named.
func world() catalog.Lists {
	return catalog.Lists{
		"a": {image("1", "app:1", "app:latest"), image("3", "tool:1")},
		"b": {image("1", "@"+digest("1")), image("3", "tool:1")},
		"c": {image("2", "app:1"), image("4")},
	}
}

func TestMerge(t *testing.T) {
	lists := world()
	lists["b"][0].Platforms = []string{"linux/arm64"}
	var got []string
	for _, i := range catalog.Merge(lists) {
		got = append(got, fmt.Sprint(i.Digest[7:8], i.References, i.Nodes, i.Size, i.Platforms))
	}
	want := []string{
		"1[docker.io/library/app:1 docker.io/library/app:latest] [a b] 2 [linux/amd64 linux/arm64]",
		"2[docker.io/library/app:1] [c] 1 [linux/amd64]",
		"3[docker.io/library/tool:1] [a b] 1 [linux/amd64]",
		"4[] [c] 0 [linux/amd64]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	if len(lists["a"][0].Nodes) > 0 {
		t.Error("what was listed has changed")
	}
	only := catalog.Merge(catalog.Lists{"b": world()["b"][:1]})
	if len(only) != 1 || len(only[0].References) != 1 {
		t.Errorf("an image that has no name but its digest: %v", only)
	}
}

func TestRemove(t *testing.T) {
	for ref, want := range map[string]struct {
		orders string
		gone   string
	}{
		"app:latest":                  {"a:app:latest", ""},
		"app":                         {"a:app:latest", ""},
		"app:1":                       {"a:app:1 c:#2", "2"}, // one of two names on a, the last on c
		"tool:1":                      {"a:#3 b:#3", "3"},
		full("tool:1"):                {"a:#3 b:#3", "3"},
		digest("1"):                   {"a:#1 b:#1", "1"},
		"app@" + digest("1"):          {"a:#1 b:#1", "1"},
		strings.Repeat("4", 12):       {"c:#4", "4"},
		"c0" + strings.Repeat("4", 9): {"c:#4", "4"}, // its configuration
	} {
		r, err := catalog.Remove(ref, world())
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		var orders []string
		for _, id := range slices.Sorted(maps.Keys(r.Orders)) {
			for _, o := range r.Orders[id] {
				if strings.HasPrefix(o, "sha256:") {
					o = "#" + o[7:8]
				}
				orders = append(orders, id+":"+strings.TrimPrefix(o, full("")))
			}
		}
		gone := ""
		for _, d := range r.Gone {
			gone += d[7:8]
		}
		if got := strings.Join(orders, " "); got != want.orders || gone != want.gone {
			t.Errorf("%s: orders %q, gone %q, want %q and %q", ref, got, gone, want.orders, want.gone)
		}
	}
	for ref, kind := range map[string]fault.Kind{"no:1": fault.NotFound, "": fault.NotFound, "Not A Name": fault.NotFound, "ffff": fault.NotFound} {
		if _, err := catalog.Remove(ref, world()); !fault.Is(err, kind) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	two := catalog.Lists{"a": {image("12"), image("13")}}
	two["a"][0].Digest, two["a"][1].Digest = "sha256:abcd1", "sha256:abcd2"
	if _, err := catalog.Remove("abcd", two); !fault.Is(err, fault.Invalid) {
		t.Errorf("of two that begin so: %v", err)
	}
}

// TestLastNameTakesAll removes one name after the other.
func TestLastNameTakesAll(t *testing.T) {
	lists := world()
	lists["a"][0].References = lists["a"][0].References[:1]
	r, err := catalog.Remove("app:1", lists)
	if err != nil || !slices.Equal(r.Gone, []string{digest("1"), digest("2")}) || !slices.Equal(r.Orders["b"], []string{digest("1")}) {
		t.Errorf("%v, %v", r, err)
	}
}
