package cluster_test

import (
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// TestAddressesChange gives one machine after the other another address, the leader last. Each finds the others again and they
// it, on etcd's port too, where certificates are held against addresses: after it, any two servers do without the third.
func TestAddressesChange(t *testing.T) {
	heavy(t)
	shape := lab.Shape{Servers: 3, Nodes: 1}
	tr := &trial{Lab: lab.Form(t, shape), shape: shape}
	tr.awaitWell(t)
	leader := tr.Leader(t)
	for _, n := range append(tr.Except(leader), leader) {
		n.StopDaemon(t)
		n.Readdress(t)
		n.StartDaemon(t)
		lab.Eventually(t, time.Minute, n.Name()+" has a certificate for its address", func() error {
			c, err := certificateOf(n)
			if err != nil {
				return err
			}
			return c.VerifyHostname(n.Address())
		})
		tr.awaitWell(t)
	}
	for _, n := range tr.Nodes()[:shape.Servers] {
		n.StopDaemon(t)
		tr.Leader(t, tr.Except(n)...).Gantry(t, "node", "label", n.Name(), "was=away")
		n.StartDaemon(t)
		tr.awaitWell(t)
	}
}
