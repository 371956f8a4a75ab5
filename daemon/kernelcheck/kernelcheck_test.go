package kernelcheck_test

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/daemon/kernelcheck"
	"github.com/gantryd/gantry/fault"
)

func TestRunFindsWhatTheTestsNeedAndLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	checks, err := kernelcheck.Run()
	if err != nil {
		t.Fatal(err)
	}
	if err := kernelcheck.Missing(checks); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(after), "gantry-probe") || len(mounts) == 0 {
		t.Fatal("a mount was left behind")
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "probe") {
			t.Fatalf("the link %s was left behind", l.Name)
		}
	}
	var out bytes.Buffer
	if err := kernelcheck.Table(&out, checks); err != nil || !strings.Contains(out.String(), "overlayfs") {
		t.Fatalf("%v\n%s", err, &out)
	}
}

func TestMissingNamesWhatIsRequired(t *testing.T) {
	err := kernelcheck.Missing([]*gantryv1.KernelCheck{
		{Feature: "nftables", Required: true, Detail: "not there"}, {Feature: "KVM"}, {Feature: "veth pairs", Required: true, Present: true},
	})
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "nftables (not there)") || strings.Contains(err.Error(), "KVM") {
		t.Fatal(err)
	}
}
