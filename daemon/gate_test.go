package daemon

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/server/machines"
)

func TestAGateLetsSomeThroughAndThenOneInAWhile(t *testing.T) {
	now := time.Unix(1000, 0)
	g := newGate()
	g.now = func() time.Time { return now }
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	count := func(from netip.Addr) (n int) {
		for range 2 * gateBurst {
			if g.admits(from) {
				n++
			}
		}
		return n
	}
	if n := count(a); n != gateBurst {
		t.Errorf("%d of the first requests were let through", n)
	}
	if n := count(b); n != gateBurst {
		t.Errorf("another address was let through %d times", n)
	}
	if now = now.Add(3 * gatePause); count(a) != 3 {
		t.Error("after a while it is not one request a pause")
	}
	for n := range gateSize {
		g.admits(netip.MustParseAddr(fmt.Sprintf("10.%d.%d.1", 1+n/250, n%250)))
	}
	if len(g.seen) > gateSize || g.admits(netip.MustParseAddr("10.200.0.1")) {
		t.Errorf("%d addresses are remembered", len(g.seen))
	}
	if now = now.Add(time.Hour); !g.admits(netip.MustParseAddr("10.200.0.1")) || len(g.seen) > 1 {
		t.Errorf("%d addresses are still remembered", len(g.seen))
	}
}

func TestAnAddressCountsByItsNetwork(t *testing.T) {
	for remote, want := range map[string]string{
		"10.0.0.1:1": "10.0.0.1", "[::ffff:10.0.0.1]:1": "10.0.0.1", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::", "[fe80::1%eth0]:1": "fe80::",
		"@": "invalid IP",
	} {
		if got := sourceOf(remote).String(); got != want {
			t.Errorf("%s counts as %s", remote, got)
		}
	}
}

// TestRequestsToJoinAreBounded: they are the only ones that anybody may send.
func TestRequestsToJoinAreBounded(t *testing.T) {
	r := newRig(t)
	const join = "/gantry.v1.JoinService/Join"
	ask := func(d door, body []byte) outcome {
		return r.post(d, join, body)
	}
	if got := ask(r.anonymous(), bytes.Repeat([]byte{0}, 2*machines.MaxJoin)); got.reached && got.Code == 0 {
		t.Errorf("a large request: %+v", got)
	}
	g := r.front.gate
	g.mu.Lock()
	g.now = func() time.Time { return time.Unix(1<<40, 0) }
	g.mu.Unlock()
	refused := 0
	for range gateBurst + 5 {
		if got := ask(r.anonymous(), nil); got.Code == connect.CodeResourceExhausted && !got.reached {
			refused++
		}
	}
	if refused != 5 {
		t.Errorf("%d of 5 requests too many were refused", refused)
	}
	// Another server has counted what it passes on.
	if got := ask(r.as(aServer, identity.Server), nil); !got.reached {
		t.Errorf("what another server passes on: %+v", got)
	}
	if got := ask(r.as(aDemoted, identity.Server), nil); got.reached {
		t.Errorf("a node's request was not counted: %+v", got)
	}
}

// TestATokenGoesOnceTheMachineHasJoined: whoever reads it later could join.
func TestATokenGoesOnceTheMachineHasJoined(t *testing.T) {
	c := Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450}
	m := newMachine(t, c)
	for _, name := range []string{tokenFile, joiningFile} {
		check(t, os.WriteFile(filepath.Join(c.Root, name), []byte("secret"), 0o600))
	}
	check(t, m.joined())
	check(t, m.joined())
	left, err := filepath.Glob(filepath.Join(c.Root, "join*"))
	check(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
