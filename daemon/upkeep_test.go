package daemon

import (
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
)

// keeperFor has a certificate that was made just now for that life.
func keeperFor(t *testing.T, life time.Duration) *identity.Keeper {
	t.Helper()
	ca, roots, _, err := identity.NewAuthority("test")
	check(t, err)
	key, request, err := identity.Request()
	check(t, err)
	cert, err := ca.Sign(request, aNode, identity.Node, "127.0.0.1", life)
	check(t, err)
	k, err := identity.NewKeeper(t.TempDir(), cert, key, roots)
	check(t, err)
	return k
}

// TestWhenACertificateIsRenewed: after two thirds of its life, and soon once the cluster has chosen another life.
func TestWhenACertificateIsRenewed(t *testing.T) {
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		made, told time.Duration
		within     time.Duration // of being told; 0 for after two thirds
	}{
		"as told":          {30 * day, 30 * day, 0},
		"little else":      {30 * day, 29 * day, 0},
		"lowered":          {30 * day, 2 * time.Minute, 12 * time.Second},
		"lowered to days":  {30 * day, 10 * day, time.Minute},
		"raised":           {day, 30 * day, time.Minute},
		"raised, very new": {2 * time.Minute, 30 * day, time.Minute},
	} {
		k, now := keeperFor(t, c.made), time.Now()
		regular := renewAt(k)
		moments := map[time.Time]bool{}
		for range 20 {
			var r renewal
			at := r.due(k, c.told, now)
			moments[at] = true
			switch {
			case c.within == 0 && !at.Equal(regular):
				t.Errorf("%s: at %s and not at %s", name, at, regular)
			case c.within > 0 && (at.Before(now) || at.After(now.Add(c.within))):
				t.Errorf("%s: %s after it was told", name, at.Sub(now))
			case !r.due(k, c.told, now.Add(time.Second)).Equal(at):
				t.Errorf("%s: asked again, it puts it off", name)
			}
		}
		if c.within > 0 && len(moments) < 10 {
			t.Errorf("%s: machines that are told at once renew at once", name)
		}
	}
}

// TestACertificateThatIsNotGoodYet is renewed at once.
func TestACertificateThatIsNotGoodYet(t *testing.T) {
	k, now := keeperFor(t, 30*time.Hour), time.Now()
	var r renewal
	if at := r.due(k, 30*time.Hour, now.Add(-identity.Backdate-time.Minute)); !at.IsZero() {
		t.Errorf("made by a clock that was ahead, it is due at %s", at)
	}
	if at := r.due(k, 30*time.Hour, now); !at.Equal(renewAt(k)) {
		t.Errorf("with the clock as it was, it is due at %s", at)
	}
}

// TestARenewalIsDone: one that a leader signs for the former life, since it has not heard of the change, is not asked for again
// and again.
func TestARenewalIsDone(t *testing.T) {
	const old, told = 30 * time.Hour, 2 * time.Minute
	before, now := keeperFor(t, old), time.Now()
	var r renewal
	due := r.due(before, told, now)
	r.settled(before)
	if got := r.due(before, told, now); !got.Equal(due) {
		t.Errorf("what was not renewed is due at %s", got)
	}
	after := keeperFor(t, old+time.Minute)
	r.settled(after)
	if got := r.due(after, told, now); !got.Equal(renewAt(after)) {
		t.Errorf("due again at %s", got)
	}
	if got := r.due(after, time.Hour, now); got.After(now.Add(renewWithin)) {
		t.Errorf("the next change is heeded only at %s", got)
	}
}

// TestACertificateThatHasEnded names the way back.
func TestACertificateThatHasEnded(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir(), Advertise: "127.0.0.1", Port: 7450})
	m.keeper = keeperFor(t, time.Minute)
	if err := m.outlived(time.Now()); err != nil {
		t.Errorf("a good one: %v", err)
	}
	later := time.Now().Add(time.Hour)
	if err := m.outlived(later); err != nil {
		t.Errorf("the only server renews its own: %v", err)
	}
	check(t, m.update(func(r *gantryv1.MachineRecord) { r.Servers = []string{"10.0.0.9:7450"} }))
	if err := m.outlived(later); !fault.Is(err, fault.Denied) || !strings.Contains(fault.HintOf(err), "gantry cluster recover") {
		t.Errorf("a server: %v; %s", err, fault.HintOf(err))
	}
	check(t, m.update(func(r *gantryv1.MachineRecord) { r.Node.Role = "node" }))
	if err := m.outlived(later); !fault.Is(err, fault.Denied) || !strings.HasPrefix(fault.HintOf(err), "on a server: gantry node rm --force ") {
		t.Errorf("a node: %v; %s", err, fault.HintOf(err))
	}
}

// TestACertificateForAnotherAddress is renewed once the cluster knows the new one, by which it is signed.
func TestACertificateForAnotherAddress(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450})
	told := func(address string) bool {
		n := m.Record().Node
		n.Address = address
		check(t, m.heard(&gantryv1.NodeUpdate{Full: true, Node: n, Nodes: []*gantryv1.Node{n}}))
		return m.stale()
	}
	if told("10.0.0.1") {
		t.Error("a certificate as it should be is stale")
	}
	check(t, m.update(func(r *gantryv1.MachineRecord) { r.Node.Address = "10.0.0.9" }))
	if told("10.0.0.1") {
		t.Error("it is asked for before the cluster knows the address")
	}
	if !told("10.0.0.9") {
		t.Error("a certificate for the address before is kept")
	}
}
