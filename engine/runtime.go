package engine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/gantryd/gantry/fault"
)

// runtimeScript stands in for the shim's program. containerd runs "-info" of it before each start of a container with
// idmapped mounts, to learn what runc can: the shim would start, and runc after it. It runs "delete" whenever a connection
// to a shim closes, after an orderly end too, where nothing is left to be deleted.
const runtimeScript = `#!/bin/sh
[ "$1" = -info ] && { printf %s; exit; }
for last; do :; done
[ "$last" = delete ] && [ "$7" = -id ] && [ ! -e %s/"$NAMESPACE/$8" ] && exit 0
exec %s "$@"
`

// writeRuntime makes the script and returns its path; the shim's program where scripts do not run.
func (e *Engine) writeRuntime(ctx context.Context) (string, error) {
	shim, path := filepath.Join(e.o.Helpers, shimBinary), filepath.Join(e.o.Root, "shim-runtime")
	if err := os.MkdirAll(e.o.Root, 0o711); err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "engine: cannot make %s", e.o.Root)
	}
	info, err := e.runtimeInfo(ctx, shim)
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "engine: %s does not say what runc can", shim).WithHint("gantryd needs %s and %s beside itself", shimBinary, runcBinary)
	}
	script := fmt.Sprintf(runtimeScript, quote(printfFormat(info)), quote(e.runcRoot()), quote(shim))
	// Renamed into place: one that runs cannot be written to.
	if err := os.WriteFile(path+".new", []byte(script), 0o700); err != nil {
		return "", fault.Wrap(diskFault(err), err, "engine: cannot write %s", path)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fault.Wrap(diskFault(err), err, "engine: cannot write %s", path)
	}
	if said, err := exec.CommandContext(ctx, path, "-info").Output(); err != nil || !bytes.Equal(said, info) {
		e.log.Debug("scripts do not run here, containers are started and removed a little slower", "error", err)
		return shim, nil
	}
	return path, nil
}

// runtimeInfo asks the shim, and it runc, what containerd asks.
func (e *Engine) runtimeInfo(ctx context.Context, shim string) ([]byte, error) {
	opts, err := e.runcOptions(0)
	if err != nil {
		return nil, err
	}
	input, err := proto.Marshal(opts)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, shim, "-info")
	cmd.Stdin = bytes.NewReader(input)
	return cmd.Output()
}

// runcOptions tell the shim which runc to run, and whose a container's output is.
func (e *Engine) runcOptions(owner uint32) (*anypb.Any, error) {
	return typeurl.MarshalAnyToProto(&options.Options{
		BinaryName: filepath.Join(e.o.Helpers, runcBinary), Root: e.runcRoot(), IoUid: owner, IoGid: owner,
	})
}

// printfFormat returns what a shell's printf prints as data.
func printfFormat(data []byte) string {
	var b strings.Builder
	for _, c := range data {
		if c < ' ' || c > '~' || c == '%' || c == '\\' {
			fmt.Fprintf(&b, `\%03o`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
