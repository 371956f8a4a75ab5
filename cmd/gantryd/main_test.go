package main

import (
	"errors"
	"testing"

	"github.com/gantryd/gantry/daemon"
	"github.com/gantryd/gantry/fault"
)

// TestExitCode: a supervisor must go on with a machine that belongs to a cluster, whatever a server says to it.
func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("the kernel lacks something"), 1},
		{fault.New(fault.Denied, "node n1 is not part of this cluster"), 1},
		{fault.Wrap(fault.Unavailable, daemon.ErrAnew, "the cluster has another network"), 1},
		{fault.New(fault.Corrupt, "the record is damaged"), 78},
		{daemon.NotAdmittedError{}, 78},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%T: exit %d, want %d", c.err, got, c.want)
		}
	}
}
