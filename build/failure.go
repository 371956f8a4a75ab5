package build

import (
	"context"
	"errors"
	"fmt"
	"strings"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// lastLines is how many lines of a failed step's output its error shows.
const lastLines = 20

// failure turns the solver's error into one for people: where in the Dockerfile, which command, how it ended, what it
// said last, what to do.
func (p *progress) failure(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if fault.KindOf(cause) != fault.Unknown {
			return cause
		}
		if errors.Is(cause, context.DeadlineExceeded) {
			return fault.New(fault.Timeout, "the build did not end in the time given")
		}
		return fault.New(fault.Canceled, "the build was canceled")
	}
	where, line := place(err)
	var known *fault.Error
	if errors.As(err, &known) {
		if where == "" {
			return known
		}
		return fault.Wrap(known.Kind, known, "%s", strings.TrimSuffix(where+line, ": ")).WithHint("%s", known.Hint)
	}
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) {
		return p.stepFailure(err, exit, where, line)
	}
	kind, hint := classify(err)
	if where == "" {
		return fault.Wrap(kind, rootCause(err), "build failed").WithHint("%s", hint)
	}
	return fault.Wrap(kind, rootCause(err), "build failed at %s%s", where, strings.TrimSuffix(line, ": ")).WithHint("%s", hint)
}

func (p *progress) stepFailure(err error, exit *gatewaypb.ExitError, where, line string) error {
	var vertex *errdefs.VertexError
	var name string
	var tail []string
	if errors.As(err, &vertex) {
		name = p.name(vertex.Digest)
		tail = p.last(vertex.Digest, lastLines)
	}
	if line == "" {
		line = name
	}
	message := fmt.Sprintf("build failed at %s%s: exit code %d", where, strings.TrimSuffix(line, ": "), exit.ExitCode)
	for _, l := range tail {
		message += "\n    " + strings.TrimRight(l, "\r")
	}
	if strings.Contains(strings.ToLower(strings.Join(tail, "\n")), unix.ENOSPC.Error()) {
		return fault.New(fault.Exhausted, "%s", message).WithHint("%s", spaceHint)
	}
	return fault.New(fault.Invalid, "%s", message).WithHint("%s", exitHint(exit.ExitCode))
}

const spaceHint = "free space: gantry system prune"

func exitHint(code uint32) string {
	switch code {
	case 126:
		return "the file is there but cannot be executed: check its mode and its format"
	case 127:
		return "a command was not found: install its package in an earlier step, or check PATH and the spelling"
	case 137:
		return "the step was killed, most often for lack of memory: see `gantry system info`, or build with less parallelism"
	}
	return "correct the step and build again; the steps before it come from the cache"
}

// place finds the innermost line of the Dockerfile that an error is about.
func place(err error) (where, line string) {
	all := errdefs.Sources(err)
	for _, s := range all {
		if s.Info == nil || len(s.Ranges) == 0 || s.Ranges[0].Start == nil {
			continue
		}
		n := int(s.Ranges[0].Start.Line)
		where = fmt.Sprintf("%s:%d: ", s.Info.Filename, n)
		lines := strings.Split(string(s.Info.Data), "\n")
		if n >= 1 && n <= len(lines) {
			line = strings.TrimSpace(lines[n-1]) + ": "
		}
		return where, line
	}
	return "", ""
}

// rootCause drops BuildKit's wrappers that repeat the line and the vertex in their own form.
func rootCause(err error) error {
	var source *errdefs.SourceError
	for errors.As(err, &source) {
		err = source.Unwrap()
	}
	var vertex *errdefs.VertexError
	if errors.As(err, &vertex) {
		err = vertex.Unwrap()
	}
	return err
}

// classify guesses the kind of an error that BuildKit only has words for.
func classify(err error) (fault.Kind, string) {
	text := err.Error()
	switch {
	case errors.Is(err, unix.ENOSPC) || strings.Contains(text, "no space left on device"):
		return fault.Exhausted, spaceHint
	case strings.Contains(text, "network.host is not allowed"):
		return fault.Denied, hostNetworkHint
	case strings.Contains(text, "is not allowed"):
		return fault.Denied, "remove what needs the privilege (RUN --security=insecure): no build has more than the rights of a container"
	case strings.Contains(text, "secret") && strings.Contains(text, "not found"):
		return fault.NotFound, "pass the secret: build.secrets in the Compose file, or gantry build --secret id=NAME,src=FILE"
	case strings.Contains(text, "ssh agent") || strings.Contains(text, "unset ssh forward key") || strings.Contains(text, "no SSH key"):
		return fault.NotFound, "forward an agent: build.ssh in the Compose file, or gantry build --ssh default"
	case strings.Contains(text, "dial tcp") || strings.Contains(text, "no such host") || strings.Contains(text, "i/o timeout"):
		return fault.Unavailable, "check the machine's network and name servers"
	}
	return fault.Invalid, "correct the Dockerfile and build again"
}
