package overssh

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gantryd/gantry/fault"
)

// ParseSocket reads ssh://[USER@]NAME[:PORT][/PATH/OF/SOCKET]; without a path it is otherwise.
func ParseSocket(text, otherwise string) (h Host, socket string, err error) {
	u, err := url.Parse(text)
	if err != nil {
		_, err = Parse(text)
		return Host{}, "", err
	}
	if socket = u.Path; socket == "" || socket == "/" {
		socket = otherwise
	}
	// ssh reads a colon as the end of a path, and fills in what follows % and $.
	if strings.ContainsAny(socket, ":%$ \t\r\n\x00") {
		return Host{}, "", fault.New(fault.Invalid, "%q is not a path that ssh can forward", socket).WithHint("for example ssh://root@host/run/gantry/gantry.sock")
	}
	u.Path, u.RawPath = "", ""
	h, err = Parse(u.String())
	return h, socket, err
}

// Forward makes a socket there reachable at a path here, until stop is called or this program ends. It answers when the
// machine there has let the user in.
func (h Host) Forward(ctx context.Context, socket string) (local string, stop func(), err error) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return "", nil, fault.New(fault.NotFound, "the program ssh is not there").WithHint("install it: apt-get install openssh-client")
	}
	dir, err := os.MkdirTemp("", "gantry-ssh-") // short, as the path of a socket must be
	if err != nil {
		return "", nil, fault.Wrap(fault.Unavailable, err, "no directory for a socket can be made")
	}
	local = filepath.Join(dir, "s")
	// The command there ends with its input, which ends with this program, however that ends.
	command := "test -S " + Quote(socket) + " || { echo there is no socket " + Quote(socket) + " >&2; exit 3; }; " +
		"test -w " + Quote(socket) + " || { echo the user may not use the socket " + Quote(socket) + " >&2; exit 4; }; echo ready; exec cat >/dev/null"
	life, cancel := context.WithCancel(context.WithoutCancel(ctx)) // once it stands, signals are for those who use it to deal with
	connected := context.AfterFunc(ctx, cancel)
	defer connected()
	cmd := exec.CommandContext(life, ssh, append([]string{"-o", "ConnectTimeout=20", "-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindMask=0177", "-L", local + ":" + socket}, h.args(command)...)...)
	cmd.WaitDelay = time.Second
	detach(cmd)
	said := &lines{}
	cmd.Stderr = said
	in, err := cmd.StdinPipe()
	var out io.ReadCloser
	if err == nil {
		out, err = cmd.StdoutPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	end := func() {
		cancel()
		if in != nil {
			_ = in.Close()
		}
		_ = os.RemoveAll(dir)
	}
	if err != nil {
		end()
		return "", nil, fault.Wrap(fault.Internal, err, "ssh cannot be run")
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "ready" {
		err := h.refused(cmd.Wait(), said)
		end()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return "", nil, err
	}
	return local, func() {
		end()
		_ = cmd.Wait()
	}, nil
}

// refused says why there is no way to a socket.
func (h Host) refused(err error, said *lines) error {
	said.end()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 3:
		return fault.New(fault.Unavailable, "the daemon on %s is not running: %s", h, said.last).WithHint("there: sudo gantry init; or name its socket: ssh://%s/PATH", h)
	case errors.As(err, &exit) && exit.ExitCode() == 4:
		return fault.New(fault.Denied, "on %s, %s", h, said.last).WithHint("there: usermod -aG gantry USER, or use ssh://root@%s", h.Name)
	}
	return fault.New(fault.Unavailable, "ssh does not reach %s: %s", h, said.last).WithHint("this has to work first, without a password: %s", h.byHand())
}
