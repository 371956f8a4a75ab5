package cluster_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// awaitFinding waits until the status that a machine gives has a finding about another one with all these words, and until
// `gantry cluster status` there says so and exits with 2.
func awaitFinding(t *testing.T, by, of *lab.Node, words ...string) {
	t.Helper()
	began := time.Now()
	var found *gantryv1.Finding
	lab.Eventually(t, 3*time.Minute, fmt.Sprintf("%s says of %s: %s", by.Name(), of.Name(), strings.Join(words, ", ")), func() error {
		st, err := by.Status()
		if err != nil {
			return err
		}
		if found = finding(st, of, words); found == nil {
			return fmt.Errorf("findings %v", st.Findings)
		}
		return nil
	})
	if found.Hint == "" {
		t.Errorf("%q has no hint", found.Message)
	}
	t.Logf("after %s: %s: %s (hint: %s)", time.Since(began).Round(100*time.Millisecond), found.Severity, found.Message, found.Hint)
	if r := by.Try("cluster", "status"); r.Code != 2 || !containsAll(r.Stdout, words) || !strings.Contains(r.Stdout, "  hint: ") {
		t.Errorf("gantry cluster status: exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
}

func containsAll(text string, words []string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

func finding(st *gantryv1.ClusterStatusResponse, of *lab.Node, words []string) *gantryv1.Finding {
	for _, f := range st.Findings {
		if f.Subject == of.Name() && containsAll(f.Message, words) {
			return f
		}
	}
	return nil
}

// slow begins what is said of a machine whose disk is slow, as that of the machine that runs the tests may be.
const slow = "the disk of server "

// awaitWell waits until the status that every server gives has no finding, but for slow disks. With none at all, `gantry cluster
// status` says that nothing is wrong, and exits with 0.
func (tr *trial) awaitWell(t *testing.T) {
	t.Helper()
	began := time.Now()
	for _, n := range tr.Nodes()[:tr.shape.Servers] {
		lab.Eventually(t, 4*time.Minute, n.Name()+" says that nothing is wrong", func() error {
			r := n.Try("cluster", "status")
			if r.Code == 0 && strings.Contains(r.Stdout, "nothing is wrong") {
				return nil
			}
			for line := range strings.Lines(r.Stdout) {
				if strings.HasPrefix(line, "error: ") || strings.HasPrefix(line, "warning: ") && !strings.HasPrefix(line, "warning: "+slow) {
					return fmt.Errorf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
				}
			}
			if r.Code != 2 || !strings.Contains(r.Stdout, "warning: "+slow) {
				return fmt.Errorf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
			}
			return nil
		})
	}
	t.Logf("nothing was wrong %s after it was mended", time.Since(began).Round(100*time.Millisecond))
}

// closePeers drops what other members send to a machine and what it sends to them. All else goes through.
func closePeers(t *testing.T, n *lab.Node) {
	t.Helper()
	n.Exec(t, "nft", "table inet peers { chain in { type filter hook input priority -10; tcp dport 7451 drop; tcp sport 7451 drop; }; "+
		"chain out { type filter hook output priority -10; tcp dport 7451 drop; tcp sport 7451 drop; }; }")
}

func openPeers(t *testing.T, n *lab.Node) {
	t.Helper()
	n.Exec(t, "nft", "delete", "table", "inet", "peers")
}

// TestFindings does one thing after another that people have to know of: the status of the others says what is wrong and what to
// do, and says so no longer once it is mended.
func TestFindings(t *testing.T) {
	tr := begin(t, lab.Shape{Servers: 3, Nodes: 1})
	tr.up(t, "web", 4)
	tr.awaitWell(t)
	server, node := tr.follower(t), tr.Node(3)
	by := tr.Except(server, node)[0]

	closePeers(t, server)
	awaitFinding(t, by, server, "is no member that answers: its machine is ready, but nothing comes from", ":7451; 2 of 3")
	openPeers(t, server)
	tr.awaitWell(t)

	node.PowerOff(t)
	awaitFinding(t, by, node, fmt.Sprintf("node %s (%s) is down", node.Name(), node.Address()))
	node.PowerOn(t)
	tr.awaitWell(t)

	node.SetClock(t, time.Hour)
	awaitFinding(t, by, node, "the clock of node "+node.Name()+" is off by ")
	node.SetClock(t, 0)
	tr.awaitWell(t)
	tr.settle(t)
}

// TestLostServer cuts the power of a server, and of the leader: the others name it, and its machine.
func TestLostServer(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 3)
	for _, n := range []*lab.Node{tr.follower(t), tr.Leader(t)} {
		n.PowerOff(t)
		by := tr.Except(n)[0]
		awaitFinding(t, by, n, "is no member that answers: nothing comes from its machine", "2 of 3")
		awaitFinding(t, by, n, "is down")
		n.PowerOn(t)
		tr.awaitWell(t)
	}
	tr.settle(t)
}

// TestStalledServer stalls the disk of a server for good: its machine goes on, and the others name it as a member that is lost.
// A disk that is only slow is named too.
func TestStalledServer(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3, Disk: "2G"})
	tr.up(t, "web", 3)
	n := tr.follower(t)
	by := tr.Except(n)[0]
	n.StallDisk(t)
	awaitFinding(t, by, n, "is no member that answers", "2 of 3")
	n.ResumeDisk(t)
	tr.awaitWell(t)
	n.SlowDisk(t, 5)
	awaitFinding(t, by, n, slow+n.Name()+" needs ")
	n.SlowDisk(t, 0)
	lab.Eventually(t, 4*time.Minute, "the disk is slow no longer", func() error {
		st, err := by.Status()
		if err != nil {
			return err
		}
		if f := finding(st, n, []string{slow}); f != nil {
			return fmt.Errorf("it says: %s", f.Message)
		}
		return nil
	})
	tr.settle(t)
}
