package ocispec

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// withoutX32 leaves the x32 interface out of a profile where the kernel has none, as most do not: nothing can use it, and
// it is nearly half of the work of making the filter, which runc does at each start.
func withoutX32(p *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	if !hasX32() {
		p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	}
	return p
}
