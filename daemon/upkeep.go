package daemon

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/server/machines"
)

// upkeep keeps a machine's certificate fresh and its object true, for as long as ctx lives.
func (d *daemon) upkeep(ctx context.Context, m *machine, s *servers) error {
	var r renewal
	for {
		changed, life := m.Changed(), machines.Life(m.Cluster())
		err := d.refresh(ctx, m, s, r.due(m.keeper, life, time.Now()))
		r.settled(m.keeper)
		wait := time.Until(r.due(m.keeper, life, time.Now()))
		if err != nil && ctx.Err() == nil {
			if gone := m.outlived(time.Now()); gone != nil {
				err = gone
			}
			d.Logger.Warn("this machine's certificate or description could not be renewed, trying again",
				"err", err, "hint", fault.HintOf(err), "ends", m.keeper.Ends())
			wait = min(max(min(m.keeper.Life(), life)/retriesPerLife, time.Second), time.Minute)
		}
		select {
		case <-changed:
		case <-time.After(min(max(wait, time.Second), upkeepLook)):
		case <-ctx.Done():
			return nil
		}
	}
}

const (
	retriesPerLife = 50
	// upkeepLook is after what time a machine looks again, whatever it expects: its clock may have been set.
	upkeepLook = time.Minute
	// renewWithin is in which time machines renew their certificates that all hear at once that they should.
	renewWithin = time.Minute
)

// renewal is when a machine's certificate is renewed.
type renewal struct {
	life time.Duration // of the cluster's certificates, as the machine has heard last
	at   time.Time     // when the certificate goes because it is of another life; zero if it may stay
	ends time.Time     // of the certificate about which that was decided
}

// due is after two thirds of the certificate's life. When the cluster's certificates get another life it is within a minute,
// at a moment of this machine's own: a thousand may hear of it. One that is not good yet goes at once: the only server may have made
// it for itself, before its clock was set right.
func (r *renewal) due(k *identity.Keeper, life time.Duration, now time.Time) time.Time {
	if now.Before(k.Begins()) {
		return time.Time{}
	}
	if r.life != life {
		r.life, r.at, r.ends = life, time.Time{}, k.Ends()
		if (k.Life() - life).Abs() > life/10 {
			r.at = now.Add(rand.N(min(life/10, renewWithin)))
		}
	}
	if at := renewAt(k); r.at.IsZero() || at.Before(r.at) {
		return at
	}
	return r.at
}

// settled notes that nothing more is due; the leader may have signed for a life that this machine has yet to hear of.
func (r *renewal) settled(k *identity.Keeper) {
	if !k.Ends().Equal(r.ends) {
		r.at = time.Time{}
	}
}

// renewAt is when two thirds of a certificate's life are over.
func renewAt(k *identity.Keeper) time.Time { return k.Ends().Add(-k.Life() / 3) }

// outlived is what to do about a certificate that has ended: with it nobody lets this machine in, since nobody could tell it
// from an old copy of its disk. Nil while the certificate is good, and on the only server, which renews its own.
func (m *machine) outlived(now time.Time) error {
	ends := m.keeper.Ends()
	if now.Before(ends) || m.isServer() && len(m.Servers()) == 0 {
		return nil
	}
	hint := "on a server: gantry node rm --force " + m.Node().Name +
		"; here: systemctl disable --now gantryd, reboot, keep what you need of ROOT/volumes, empty --root, and run gantry join"
	if m.isServer() {
		hint = "if all servers were away for so long: gantry cluster recover, on one of them; the others, or this one if others lead: " + hint
	}
	return fault.New(fault.Denied, "this machine's certificate ended at %s: other machines refuse it", ends.Format(time.RFC3339)).WithHint("%s", hint)
}

// refresh does what is due.
func (d *daemon) refresh(ctx context.Context, m *machine, s *servers, due time.Time) error {
	r := m.Record()
	if r.Node.ApiAddress == "" && !time.Now().After(due) {
		return nil // stands alone: nobody looks at the rest
	}
	if r.Node.Role != string(identity.Server) && len(m.Servers()) == 0 {
		return fault.New(fault.Unavailable, "this machine knows no server")
	}
	if m.stale() || time.Now().After(due) {
		if _, err := s.renew(ctx); err != nil {
			return err
		}
		d.Logger.Info("this machine has a new certificate", "role", m.keeper.Role(), "ends", m.keeper.Ends())
	}
	return d.describe(ctx, m, s)
}

// stale reports whether the certificate says something else of this machine than the cluster does. Who signs it takes the
// address that the cluster knows.
func (m *machine) stale() bool {
	r, heard := m.Record(), m.heardOf()
	return string(m.keeper.Role()) != r.Node.Role || len(r.Cluster.Roots) > 0 && !bytes.Equal(m.keeper.Roots(), r.Cluster.Roots) ||
		heard != nil && heard.Address == r.Node.Address && net.ParseIP(heard.Address) != nil && !m.keeper.At(heard.Address)
}

// describe tells the cluster where this machine is, if the cluster thinks otherwise.
func (d *daemon) describe(ctx context.Context, m *machine, s *servers) error {
	n, heard := m.Node(), m.heardOf()
	if heard == nil || n.ApiAddress == "" || heard.Address == n.Address && heard.ApiAddress == n.ApiAddress &&
		heard.Name == n.Name && heard.OverlayKey == n.OverlayKey {
		return nil
	}
	_, err := ask(ctx, s, &gantryv1.DescribeRequest{
		Address: n.Address, ApiAddress: n.ApiAddress, OverlayKey: n.OverlayKey, Name: n.Name,
	}, gantryv1connect.MachineServiceClient.Describe)
	return err
}
