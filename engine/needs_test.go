package engine

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/ocispec"
)

// TestOomScoreNeedsTheMachinesRoot is no container's test, because a machine may not let even root go below 0.
func TestOomScoreNeedsTheMachinesRoot(t *testing.T) {
	for adj, want := range map[int32]string{-1: "oom_score_adj below 0", 0: "", 500: ""} {
		spec := &gantryv1.ContainerSpec{Resources: &gantryv1.Resources{OomScoreAdj: adj}}
		if why := needsHostIDs(CreateRequest{Spec: spec}); why != want {
			t.Errorf("%d: %q", adj, why)
		}
	}
}

func TestCapabilitiesThatWorkRemapped(t *testing.T) {
	for name, want := range map[string]bool{
		"NET_ADMIN": true, "cap_net_raw": true, "sys_ptrace": true, "CHOWN": true, "NET_BIND_SERVICE": true,
		"ALL": false, "SYS_ADMIN": false, "CAP_SYS_TIME": false, "ipc_lock": false, "MKNOD": false, "SYS_NICE": false,
	} {
		if got := ocispec.WorksRemapped(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
