package compose

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantryd/gantry/fault"
)

// write makes a project directory.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "project")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// load loads one compose.yaml as the app "shop".
func load(t testing.TB, yaml string) (*Project, error) {
	t.Helper()
	return Load(t.Context(), Options{
		ProjectDir: write(t, map[string]string{"compose.yaml": yaml}), ProjectName: "shop", Environ: []string{"E=e"},
	})
}

func image(p *Project, service string) string {
	return p.Spec.Services[service].GetContainer().GetImage()
}

func TestFilesAndNames(t *testing.T) {
	dir := write(t, map[string]string{
		".env":                  "TAG=env-file\nBOTH=file\n",
		"other.env":             "TAG=other\n",
		"compose.yaml":          "services: {a: {image: 'x:${TAG}-${BOTH-unset}'}}\n",
		"compose.override.yaml": "services: {b: {image: y}}\n",
		"named.yaml":            "name: named\nservices: {n: {image: z}}\n",
		"below/deep/x":          "",
	})
	t.Chdir(filepath.Join(dir, "below/deep"))
	p := mustLoad(t, Options{Environ: []string{"BOTH=client"}})
	if p.Dir != dir || p.Name != "project" || len(p.Files) != 2 || image(p, "a") != "x:env-file-client" || image(p, "b") != "y" {
		t.Errorf("found in a parent: %+v", p)
	}
	p = mustLoad(t, Options{ProjectDir: dir, EnvFiles: []string{filepath.Join(dir, "other.env")}, ProjectName: "mine"})
	if p.Name != "mine" || image(p, "a") != "x:other-unset" {
		t.Errorf("own env file: %s, %s", p.Name, image(p, "a"))
	}
	named := filepath.Join(dir, "named.yaml")
	for want, o := range map[string]Options{
		"named": {Files: []string{named}}, "given": {Files: []string{named}, ProjectName: "given"},
		"fromenv": {Files: []string{named}, Environ: []string{"COMPOSE_PROJECT_NAME=fromenv"}},
	} {
		if p := mustLoad(t, o); p.Name != want {
			t.Errorf("name %q, want %q", p.Name, want)
		}
	}
	p = mustLoad(t, Options{ProjectDir: dir, Environ: []string{"COMPOSE_FILE=" + named + string(os.PathListSeparator) + filepath.Join(dir, "compose.yaml")}})
	if len(p.Spec.Services) != 2 {
		t.Errorf("COMPOSE_FILE: %v", p.Spec.Services)
	}
	if _, err := Load(t.Context(), Options{ProjectDir: t.TempDir()}); !fault.Is(err, fault.NotFound) || fault.HintOf(err) == "" {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(t.Context(), Options{ProjectDir: dir, Environment: "Prod/../x"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("bad environment: %v", err)
	}
}

func TestEnvironmentInKeys(t *testing.T) {
	dir := write(t, map[string]string{"compose.yaml": "services: {a: {image: x, volumes: ['vol:/d']}}\nvolumes: {vol: {}}\n"})
	p := mustLoad(t, Options{ProjectDir: dir, ProjectName: "app", Environment: "staging"})
	if p.Spec.Volumes["vol"].Key != "staging/app/vol" || p.Spec.Networks["default"].Key != "staging/app/default" {
		t.Errorf("%v", p.Spec)
	}
}

func TestProfiles(t *testing.T) {
	dir := write(t, map[string]string{"compose.yaml": `
services:
  web: {image: x, depends_on: {debug: {condition: service_started, required: false}}}
  debug: {image: y, profiles: [debug], use_api_socket: true}
  test: {image: z, profiles: [test], depends_on: [web]}
`})
	p := mustLoad(t, Options{ProjectDir: dir})
	if len(p.Spec.Services) != 1 || !slices.Equal(p.DisabledServices, []string{"debug", "test"}) {
		t.Errorf("without profiles: %v, disabled %v", p.Spec.Services, p.DisabledServices)
	}
	if len(p.Spec.Services["web"].DependsOn) != 0 {
		t.Error("a dependency that is not there was kept")
	}
	p = mustLoad(t, Options{ProjectDir: dir, Environ: []string{"COMPOSE_PROFILES=test"}})
	if len(p.Spec.Services) != 2 {
		t.Errorf("test: %v", p.Spec.Services)
	}
	if _, err := Load(t.Context(), Options{ProjectDir: dir, Profiles: []string{"debug"}}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a refused key in an enabled service: %v", err)
	}
	dir = write(t, map[string]string{"compose.yaml": "services:\n  a:\n    image: x\n    depends_on: [b]\n  b: {image: y, profiles: [p]}\n"})
	if _, err := Load(t.Context(), Options{ProjectDir: dir}); err == nil || !strings.Contains(fault.HintOf(err), "--profile") {
		t.Errorf("needs a disabled service: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	p, err := load(t, `version: "3.8"
services:
  a:
    image: x${MISSING}
    container_name: boss
    attach: true
    deploy: {update_config: {parallelism: 0}}
    environment:
      - B=${NESTED:-${ALSO_MISSING}}
networks:
  n:
    attachable: false
    enable_ipv6: false
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range p.Warnings {
		got = append(got, strings.TrimPrefix(w.String(), p.Dir+"/"))
	}
	for _, want := range []string{
		"compose.yaml:1: version: ", `compose.yaml:4: the variable "MISSING" is not set`, `compose.yaml:9: the variable "ALSO_MISSING" is not set`,
		"compose.yaml:5: services.a.container_name: ", "compose.yaml:6: services.a.attach: ",
		"compose.yaml:12: networks.n.attachable: ", "compose.yaml:13: networks.n.enable_ipv6: ",
	} {
		if n := len(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return !strings.HasPrefix(s, want) })); n != 1 {
			t.Errorf("%d warnings %q in %q", n, want, got)
		}
	}
	if len(got) != 7 {
		t.Errorf("%d warnings: %q", len(got), got)
	}
	if a := p.Spec.Services["a"].Container.Network.Attachments[0].Aliases; !slices.Equal(a, []string{"boss"}) {
		t.Errorf("aliases %v", a)
	}
}

// A cycle through a service that is not enabled is none; what is wrong in .env is said too.
func TestQuietOutside(t *testing.T) {
	dir := write(t, map[string]string{
		".env":         "A=${NOT_SET_ANYWHERE}\n",
		"compose.yaml": "services:\n  a: {image: x, depends_on: {b: {condition: service_started, required: false}}}\n  b: {image: x, profiles: [p], depends_on: [a]}\n",
	})
	p := mustLoad(t, Options{ProjectDir: dir})
	if len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0].Message, `"NOT_SET_ANYWHERE"`) {
		t.Errorf("warnings %v", p.Warnings)
	}
	if _, err := Load(t.Context(), Options{ProjectDir: dir, Profiles: []string{"p"}}); err == nil || !strings.Contains(err.Error(), "a → b → a") {
		t.Errorf("with the profile: %v", err)
	}
}

func TestParallelLoads(t *testing.T) {
	dir := write(t, map[string]string{"compose.yaml": "services: {a: {image: 'x${V}'}}"})
	done := make(chan int)
	for range 8 {
		go func() {
			p, err := Load(t.Context(), Options{ProjectDir: dir})
			if err != nil {
				t.Error(err)
				done <- 0
				return
			}
			done <- len(p.Warnings)
		}()
	}
	for range 8 {
		if n := <-done; n != 1 {
			t.Errorf("%d warnings", n)
		}
	}
}
