package ocispec

import (
	"os"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestProfileHasX32OnlyWhereTheKernelHas(t *testing.T) {
	whole := seccomp.DefaultProfile(&specs.Spec{Linux: &specs.Linux{}, Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if !slices.Contains(whole.Architectures, specs.ArchX32) {
		t.Fatal("containerd's profile has no x32 any more: withoutX32 can go")
	}
	left := withoutX32(whole).Architectures
	for _, a := range []specs.Arch{specs.ArchX86_64, specs.ArchX86} {
		if !slices.Contains(left, a) {
			t.Errorf("%s is missing in %v", a, left)
		}
	}
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil || mode != 0 {
		t.Skip("this process is filtered itself")
	}
	pid, _, _ := unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	if has := int(pid) == os.Getpid(); has != slices.Contains(left, specs.ArchX32) {
		t.Errorf("the kernel has x32: %v; the profile: %v", has, left)
	}
}
