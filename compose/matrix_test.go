package compose

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"go.yaml.in/yaml/v4"
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
		if reason, _, _ := strings.Cut(e.Note, "; "); e.Support == Refused && (strings.HasPrefix(reason, "use ") || strings.HasPrefix(reason, "set ")) {
			t.Errorf("%s: %q is no reason", e.Path, reason)
		}
	}
}

const (
	docFile  = "../doc/compose.md"
	docBegin = "<!-- matrix: begin -->\n"
	docEnd   = "<!-- matrix: end -->"
)

// UPDATE_DOC=1 writes the table.
func TestDocumentIsInStep(t *testing.T) {
	b, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), docBegin)
	table, tail, ok2 := strings.Cut(rest, docEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", docFile)
	}
	if os.Getenv("UPDATE_DOC") != "" {
		if err := os.WriteFile(docFile, []byte(head+docBegin+MatrixTable()+docEnd+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if table != MatrixTable() {
		t.Errorf("%s is not in step with the matrix: UPDATE_DOC=1 go test ./compose -run Document", docFile)
	}
}

// The file that converts every key has every supported key, so that none is supported by the table alone.
func TestEverySupportedKeyIsConverted(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range []string{"compose.yaml", "included/compose.yaml"} {
		b, err := os.ReadFile("testdata/every/" + name)
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := yaml.Unmarshal(b, &doc); err != nil {
			t.Fatal(err)
		}
		collect(doc, newMatrixTree(Matrix()), seen)
	}
	elsewhere := map[string]string{
		"services.*.build.dockerfile_inline": "TestInlineDockerfile", "services.*.build.ssh.*": "a list here",
		"configs.*.external.name": "TestOldExternalNames", "networks.*.external": "TestOldExternalNames", "networks.*.external.name": "TestOldExternalNames",
		"secrets.*.external.name": "TestOldExternalNames", "volumes.*.external.name": "TestOldExternalNames",
	}
	for _, e := range Matrix() {
		if e.Support == Supported && !seen[e.Path] && elsewhere[e.Path] == "" {
			t.Errorf("%s is said to be supported, and no test has it", e.Path)
		}
	}
}

func collect(v any, n *matrixNode, seen map[string]bool) {
	if n == nil {
		return
	}
	if n.entry != nil {
		seen[n.entry.Path] = true
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			collect(e, n.step(k), seen)
		}
	case []any:
		for _, e := range v {
			if name, ok := e.(string); ok {
				name, _, _ = strings.Cut(name, "=")
				collect(nil, n.step(name), seen)
			}
			collect(e, n.children[anyItem], seen)
		}
	}
}

func TestInlineDockerfile(t *testing.T) {
	p, err := load(t, "services:\n  a:\n    build:\n      dockerfile_inline: |\n        FROM scratch\n      ssh: [default]\n")
	if err != nil {
		t.Fatal(err)
	}
	b := p.Spec.Services["a"].Build
	if b.DockerfileInline != "FROM scratch\n" || b.Context != p.Dir || b.Dockerfile != "" || !slices.Equal(b.Ssh, []string{"default"}) {
		t.Errorf("%v", b)
	}
}

func TestOldExternalNames(t *testing.T) {
	p, err := load(t, `
services: {a: {image: x, networks: [n], volumes: ['vol:/d'], secrets: [s], configs: [c]}}
networks: {n: {external: {name: net}}}
volumes: {vol: {external: {name: data}}}
secrets: {s: {external: {name: token}}}
configs: {c: {external: {name: conf}}}
`)
	if err != nil {
		t.Fatal(err)
	}
	s := p.Spec
	for got, want := range map[string]string{
		s.Networks["n"].Key: "production/net", s.Volumes["vol"].Key: "production/data",
		s.Secrets["s"].Key: "production/token", s.Configs["c"].Key: "production/conf",
	} {
		if got != want {
			t.Errorf("key %q, want %q", got, want)
		}
	}
	if len(p.Warnings) != 4 {
		t.Errorf("warnings about the old form: %v", p.Warnings)
	}
}
