package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/internal/atomicfile"
)

const (
	joiningFile  = "joining.pem" // this machine's key while it joins, so that asking again is asking as the same machine
	joinPatience = time.Minute
	joinRetry    = time.Second
)

// The ports of a machine, counted from --port.
const (
	apiPort = iota
	peerPort
	vxlanPort
	wireguardPort
)

// apiAddress is where other machines reach this one; empty if it stands alone.
func (c Config) apiAddress() string { return c.at(apiPort) }

func (c Config) at(offset int) string {
	if c.Advertise == "" {
		return ""
	}
	return net.JoinHostPort(c.Advertise, strconv.Itoa(c.Port+offset))
}

// NotAdmittedError is that of a machine that is no part of the cluster that it was told to join, and will not be by asking again.
type NotAdmittedError struct{ error }

// Unwrap returns what the cluster or this machine itself has against it.
func (e NotAdmittedError) Unwrap() error { return e.error }

// askToJoin calls the server until it answers yes or no.
func askToJoin(ctx context.Context, c Config) (*gantryv1.JoinResponse, []byte, error) {
	token, err := readToken(c.TokenFile)
	if err != nil {
		return nil, nil, err
	}
	if c.Advertise == "" {
		return nil, nil, NotAdmittedError{fault.New(fault.Invalid, "a machine that joins others must be reachable for them").
			WithHint("add --advertise ADDRESS, an address of this machine that they reach")}
	}
	key, request, err := joiningKey(c.Root)
	if err != nil {
		return nil, nil, err
	}
	name, err := hostName()
	if err != nil {
		return nil, nil, err
	}
	hc := identity.JoinClient(token)
	defer hc.CloseIdleConnections()
	client := gantryv1connect.NewJoinServiceClient(hc, "https://"+c.Join)
	req := &gantryv1.JoinRequest{
		Token: token.String(), CertificateRequest: request, Name: name, Address: c.Advertise, ApiAddress: c.apiAddress(),
		Labels: c.Labels, Version: c.Version.GetVersion(),
	}
	deadline := time.Now().Add(joinPatience)
	for {
		resp, err := client.Join(ctx, connect.NewRequest(req))
		if err == nil {
			return resp.Msg, key, nil
		}
		final := refuses(err)
		if final || time.Now().After(deadline) {
			return nil, nil, c.notJoined(err, final)
		}
		c.Logger.Info("the server does not admit this machine yet, trying again", "server", c.Join, "err", wire.Decode(err))
		select {
		case <-time.After(joinRetry):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// refuses reports whether an answer to a machine that asks to join stays the same until somebody does something: no other token
// comes by itself. That a server cannot be reached, has no leader, or is asked too often, passes.
func refuses(err error) bool {
	if own, ok := errors.AsType[*fault.Error](err); ok {
		return own.Kind == fault.Denied // of this side: the server's certificate is not what the token says
	}
	switch fault.KindOf(wire.Decode(err)) {
	case fault.Denied, fault.Invalid, fault.Conflict, fault.Exists, fault.Unsupported:
		return true
	}
	return false
}

// notJoined says why a machine has not joined.
func (c Config) notJoined(err error, final bool) error {
	hint := fault.HintOf(err)
	if err = wire.Decode(err); hint == "" {
		hint = fault.HintOf(err)
	}
	failed := fault.Wrap(fault.KindOf(err), err, "cannot join the cluster at %s", c.Join).
		WithHint("%s", orElse(hint, "does this machine reach %s? is gantryd running there with --advertise?", c.Join))
	if final {
		return NotAdmittedError{failed}
	}
	return failed
}

func readToken(path string) (identity.Token, error) {
	if path == "" {
		return identity.Token{}, NotAdmittedError{fault.New(fault.Invalid, "--join needs a token").
			WithHint("on a server: gantry cluster token create; here: --token-file FILE")}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return identity.Token{}, fault.Wrap(fault.NotFound, err, "cannot read the token").WithHint("--token-file names a file that holds the token alone")
	}
	token, err := identity.ParseToken(string(text))
	if err != nil {
		return token, NotAdmittedError{err}
	}
	return token, nil
}

// joiningKey is the key and request of this machine, the same after a crash.
func joiningKey(root string) (key, request []byte, err error) {
	path := filepath.Join(root, joiningFile)
	key, err = atomicfile.Read(path)
	if err == nil {
		request, err = identity.RequestFor(key)
		return key, request, err
	}
	if fault.Is(err, fault.Corrupt) {
		return nil, nil, fault.Wrap(fault.Corrupt, err, "this machine's key is damaged").
			WithHint("it has joined nothing yet: remove %s and start again", path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fault.Wrap(fault.Unavailable, err, "cannot read this machine's key")
	}
	if key, request, err = identity.Request(); err != nil {
		return nil, nil, err
	}
	if err := atomicfile.Write(path, key, 0o600); err != nil {
		return nil, nil, fault.Wrap(fault.Unavailable, err, "cannot keep this machine's key")
	}
	return key, request, nil
}

// orElse is the text, or the format if there is none.
func orElse(text, format string, args ...string) string {
	if text != "" {
		return text
	}
	for _, a := range args {
		format = strings.Replace(format, "%s", a, 1)
	}
	return format
}
