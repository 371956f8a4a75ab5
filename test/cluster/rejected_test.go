package cluster_test

import (
	"strings"
	"testing"
	"time"
)

// TestRejectedLeader has a firewall refuse and reset what comes from one server to the leader, or what goes either way between
// the two. The server takes the leader for dead, wrongly: that may cost one change of leaders, and no more.
func TestRejectedLeader(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 6)
	for _, both := range []bool{false, true} {
		leader := tr.Leader(t)
		follower := tr.Except(leader)[0]
		rules := "ip saddr " + follower.Address() + " tcp dport { 7450, 7451 } reject with tcp reset;"
		if both {
			rules += " ip saddr " + follower.Address() + " tcp sport { 7450, 7451 } reject with tcp reset;"
		}
		before := reigns(tr)
		leader.Exec(t, "nft", "table inet rejected { chain in { type filter hook input priority -10; "+rules+" }; }")
		time.Sleep(20 * time.Second)
		if n := reigns(tr) - before; n > 2 {
			t.Errorf("rejected in both directions %v: %d leaders in 20 s", both, n)
		} else {
			t.Logf("rejected in both directions %v: %d leaders in 20 s", both, n)
		}
		leader.Exec(t, "nft", "delete", "table", "inet", "rejected")
		tr.AwaitNodes(t, 3)
		tr.converge(t)
	}
	// Slots may have run twice: the firewall kept a machine from its server, and the lab does not know of it.
	tr.ledger.check(t)
}

// reigns is how often a server of the cluster has begun to lead.
func reigns(tr *trial) int {
	n := 0
	for _, s := range tr.Nodes() {
		n += strings.Count(s.DaemonLog(), "this server leads\"")
	}
	return n
}
