package shimpool

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/fault"
)

// start starts a shim, as containerd does for a container: "shim start" leaves the shim behind and prints its address.
func (p *Pool) start(ctx context.Context) (s shim, err error) {
	id := p.prefix + rand.Text()[:12]
	s = shim{filepath.Join(p.o.Dir, id), p.socketOf(id)}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	defer func() {
		if err != nil {
			p.end(s)
			err = fault.Wrap(fault.Unavailable, err, "a shim cannot be started")
		}
	}()
	if err := prepareDir(s.dir); err != nil {
		return s, err
	}
	cmd, err := p.command(ctx, id, s.dir)
	if err != nil {
		return s, err
	}
	out, err := cmd.Output()
	if err != nil {
		return s, fmt.Errorf("%w: %s", err, stderr(err))
	}
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(out, &result); err != nil {
		return s, err
	}
	if result.Protocol != "ttrpc" || result.Version != Version {
		return s, fmt.Errorf("it speaks %s %d, not ttrpc %d", result.Protocol, result.Version, Version)
	}
	s.address = result.Address
	return s, os.WriteFile(filepath.Join(s.dir, addressFile), []byte(s.address), 0o600)
}

// Version is that of the protocol that shims speak.
const Version = 3

// prepareDir makes what a shim looks for in its directory: a specification, without a group here, and where it logs to.
func prepareDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "log"), nil, 0o600)
}

func (p *Pool) command(ctx context.Context, id, dir string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	params, err := proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: id, Namespace: p.o.Namespace, LogLevel: bootapi.LogLevel_LOG_LEVEL_WARN, ContainerdBinary: self,
		ContainerdGrpcAddress: p.o.Address, ContainerdTtrpcAddress: p.o.Address + ".ttrpc", SocketDir: &p.o.Sockets,
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, p.o.Binary,
		"-namespace", p.o.Namespace, "-address", p.o.Address, "-publish-binary", self, "-id", id, "start")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(params)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "NAMESPACE="+p.o.Namespace,
		"TTRPC_ADDRESS="+p.o.Address+".ttrpc", "GRPC_ADDRESS="+p.o.Address)
	return cmd, nil
}

func stderr(err error) string {
	if e, ok := err.(*exec.ExitError); ok {
		return string(bytes.TrimSpace(e.Stderr))
	}
	return ""
}

// socketOf returns the address that a shim makes for an ID.
func (p *Pool) socketOf(id string) string {
	sum := sha256.Sum256([]byte(filepath.Join(p.o.Address, p.o.Namespace, id)))
	return fmt.Sprintf("unix://%s/%x", p.o.Sockets, sum)
}
