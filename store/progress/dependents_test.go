package progress_test

import (
	"slices"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

func TestDependentsAreRestartedToo(t *testing.T) {
	service := func(name string, c *gantryv1.ContainerSpec, deps ...*gantryv1.Dependency) *gantryv1.Service {
		return &gantryv1.Service{Meta: store.NewMeta("p/a/" + name), Environment: "p", App: "a", Name: name,
			Spec: &gantryv1.ServiceSpec{Container: c, DependsOn: deps}}
	}
	on := func(name string, restart bool) *gantryv1.Dependency {
		return &gantryv1.Dependency{Service: name, Restart: restart}
	}
	joined := &gantryv1.ContainerSpec{Network: &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_SERVICE, Target: "db"}}
	r := store.Fixed(
		service("db", nil), service("api", nil, on("db", true)), service("web", nil, on("api", true)),
		service("calm", nil, on("db", false)), service("sidecar", joined, on("db", true)),
		&gantryv1.Service{Meta: store.NewMeta("p/b/other"), Name: "other", Spec: &gantryv1.ServiceSpec{DependsOn: []*gantryv1.Dependency{on("db", true)}}},
	)
	if got := progress.WithDependents(r, "p/a/", []string{"db"}); !slices.Equal(got, []string{"db", "api", "web"}) {
		t.Errorf("with db: %v", got)
	}
	if got := progress.WithDependents(r, "p/a/", []string{"web"}); !slices.Equal(got, []string{"web"}) {
		t.Errorf("with web: %v", got)
	}
}
