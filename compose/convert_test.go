package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// wantService compares with the JSON form of a service. "DIR" stands for the project directory.
func wantService(t *testing.T, p *Project, name, wantJSON string) {
	t.Helper()
	want := &gantryv1.ServiceSpec{}
	if err := protojson.Unmarshal([]byte(strings.ReplaceAll(wantJSON, "DIR", p.Dir)), want); err != nil {
		t.Fatalf("the test's JSON: %v", err)
	}
	if got := p.Spec.Services[name]; !proto.Equal(got, want) {
		t.Errorf("%s:\ngot  %s\nwant %s", name, protojson.Format(got), protojson.Format(want))
	}
}

func mustLoad(t *testing.T, o Options) *Project {
	t.Helper()
	p, err := Load(t.Context(), o)
	if err != nil {
		t.Fatalf("%v\nhint: %s", err, fault.HintOf(err))
	}
	return p
}

// One file with every supported key becomes what the golden file says. Run with UPDATE_GOLDEN=1 after looking at the difference.
func TestEveryKey(t *testing.T) {
	dir, err := filepath.Abs("testdata/every")
	if err != nil {
		t.Fatal(err)
	}
	p := mustLoad(t, Options{ProjectDir: dir, Environ: []string{"FROM_ENV=secret from the environment", "TAG=7.2"}})
	for _, w := range p.Warnings {
		t.Errorf("unexpected warning: %s", w)
	}
	got := strings.ReplaceAll(protojson.MarshalOptions{Multiline: true}.Format(p.Spec), dir, "DIR")
	got = strings.ReplaceAll(got, ":  ", ": ") + "\n" // protojson varies its spaces on purpose
	golden := filepath.Join(dir, "golden.json")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := &gantryv1.AppSpec{}
	if err := protojson.Unmarshal([]byte(strings.ReplaceAll(string(b), "DIR", dir)), want); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(p.Spec, want) {
		t.Errorf("the spec differs from %s (UPDATE_GOLDEN=1 writes it):\n%s", golden, got)
	}
}
