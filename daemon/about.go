package daemon

import (
	"runtime"
	"runtime/debug"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// About is what the daemon says of itself: its own version, and those of the libraries that do the heavy work.
func About(version, commit string) *gantryv1.VersionResponse {
	v := &gantryv1.VersionResponse{
		Version: version, Commit: commit, GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH,
		Modules: map[string]string{},
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/containerd/containerd/v2", "github.com/moby/buildkit", "go.etcd.io/etcd/server/v3", "github.com/opencontainers/runc":
				v.Modules[m.Path] = m.Version
			}
		}
	}
	return v
}
