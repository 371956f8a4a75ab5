package daemon

import (
	"bytes"
	"context"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
)

// upkeep keeps a machine's certificate fresh and its object true, for as long as ctx lives.
func (d *daemon) upkeep(ctx context.Context, m *machine, s *servers) error {
	for {
		changed := m.Changed()
		wait := time.Until(renewAt(m.keeper))
		if err := d.refresh(ctx, m, s); err != nil && ctx.Err() == nil {
			d.Logger.Warn("this machine's certificate or description could not be renewed, trying again", "err", err, "ends", m.keeper.Ends())
			wait = min(max(m.keeper.Life()/retriesPerLife, time.Second), time.Minute)
		}
		select {
		case <-changed:
		case <-time.After(max(wait, time.Second)):
		case <-ctx.Done():
			return nil
		}
	}
}

const retriesPerLife = 50

// renewAt is when two thirds of a certificate's life are over.
func renewAt(k *identity.Keeper) time.Time { return k.Ends().Add(-k.Life() / 3) }

// refresh does what is due.
func (d *daemon) refresh(ctx context.Context, m *machine, s *servers) error {
	r := m.Record()
	if r.Node.ApiAddress == "" && !time.Now().After(renewAt(m.keeper)) {
		return nil // stands alone: nobody looks at the rest
	}
	if r.Node.Role != string(identity.Server) && len(m.Servers()) == 0 {
		return fault.New(fault.Unavailable, "this machine knows no server")
	}
	stale := string(m.keeper.Role()) != r.Node.Role || len(r.Cluster.Roots) > 0 && !bytes.Equal(m.keeper.Roots(), r.Cluster.Roots)
	if stale || time.Now().After(renewAt(m.keeper)) {
		if _, err := s.renew(ctx); err != nil {
			return err
		}
		d.Logger.Info("this machine has a new certificate", "role", m.keeper.Role(), "ends", m.keeper.Ends())
	}
	return d.describe(ctx, m, s)
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
