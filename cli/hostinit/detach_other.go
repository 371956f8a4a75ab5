//go:build !unix

package hostinit

import "os/exec"

// detach has nothing to do where no daemon runs.
func detach(*exec.Cmd) {}
