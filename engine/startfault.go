package engine

import (
	"errors"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// startFault turns what runc says into an error for people: what, where, and what to do.
func startFault(c *container, err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	text := err.Error()
	what := runcMessage(text)
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory") && strings.Contains(text, "exec"):
		return fault.New(fault.Invalid, "container %s: %s", c.ID, what).
			WithHint("the command is not in the container's file system; check command:, entrypoint: and the image")
	case strings.Contains(text, "permission denied") && strings.Contains(text, "exec"):
		return fault.New(fault.Invalid, "container %s: %s", c.ID, what).WithHint("chmod +x the file in the image, or run it with its interpreter")
	case strings.Contains(text, "exec format error"):
		return fault.New(fault.Invalid, "container %s: %s", c.ID, what).
			WithHint("the program is for another processor, or a script without a #! line")
	case strings.Contains(text, "cgroup"):
		return fault.New(fault.Unavailable, "container %s: its control group cannot be made: %s", c.ID, what).
			WithHint("gantry system info shows the machine's control groups")
	case strings.Contains(text, "no space left on device"):
		return fault.New(fault.Exhausted, "container %s: the disk is full: %s", c.ID, what).WithHint("gantry system df")
	case strings.Contains(text, "mounting"), strings.Contains(text, "mount request"):
		return fault.New(fault.Invalid, "container %s: %s", c.ID, what).WithHint("check volumes: and tmpfs: of the service")
	}
	return fault.New(fault.Internal, "container %s cannot be started: %s", c.ID, what)
}

// runcMessage cuts the layers that say nothing off runc's message.
func runcMessage(text string) string {
	for _, layer := range []string{
		"OCI runtime create failed: ", "OCI runtime start failed: ", "runc create failed: ", "unable to start container process: ",
		"error during container init: ", "failed to create shim task: ",
	} {
		if _, after, ok := strings.Cut(text, layer); ok {
			text = after
		}
	}
	return strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), ": unknown"))
}
