package cluster_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// certificateOf is the certificate that a machine has now.
func certificateOf(n *lab.Node) (*x509.Certificate, error) {
	text, err := os.ReadFile(filepath.Join(n.Root(), "identity", "machine.pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no certificate in " + string(text))
	}
	return x509.ParseCertificate(block.Bytes)
}

// certificates is what the machines have now.
func certificates(t *testing.T, of []*lab.Node) map[*lab.Node]*x509.Certificate {
	t.Helper()
	out := map[*lab.Node]*x509.Certificate{}
	for _, n := range of {
		c, err := certificateOf(n)
		if err != nil {
			t.Fatal(err)
		}
		out[n] = c
	}
	return out
}

// awaitRenewed waits until each of the machines has another certificate than it had, one of that life, and the cluster knows.
func awaitRenewed(t *testing.T, by *lab.Node, had map[*lab.Node]*x509.Certificate, life time.Duration) map[*lab.Node]*x509.Certificate {
	t.Helper()
	began, now := time.Now(), map[*lab.Node]*x509.Certificate{}
	lab.Eventually(t, life+time.Minute, "the certificates are renewed", func() error {
		for n, old := range had {
			c, err := certificateOf(n)
			if err != nil {
				return err
			}
			if c.SerialNumber.Cmp(old.SerialNumber) == 0 || !c.NotAfter.After(c.NotBefore.Add(life)) || c.NotAfter.After(time.Now().Add(life+time.Minute)) {
				return fmt.Errorf("%s has the certificate %x until %s", n.Name(), c.SerialNumber, c.NotAfter)
			}
			now[n] = c
		}
		return told(by, now)
	})
	t.Logf("%d machines have new certificates after %s", len(now), time.Since(began).Round(100*time.Millisecond))
	return now
}

// told wants a server to know until when the certificates are good, and not to complain of them.
func told(by *lab.Node, want map[*lab.Node]*x509.Certificate) error {
	for n, c := range want {
		views, err := by.Machines()
		if err != nil {
			return err
		}
		for _, view := range views {
			if end := view.Status.GetCertificateEnd().AsTime(); view.Node.Name == n.Name() && !end.Equal(c.NotAfter) {
				return fmt.Errorf("the certificate of %s is said to end at %s, not at %s", n.Name(), end, c.NotAfter)
			}
		}
	}
	st, err := by.Status()
	if err != nil {
		return err
	}
	for _, f := range st.Findings {
		for n := range want {
			if f.Subject == n.Name() && strings.Contains(f.Message, "certificate") {
				return errors.New(f.Message)
			}
		}
	}
	return nil
}

// daemons is the processes of the daemons.
func (tr *trial) daemons(t *testing.T) string {
	t.Helper()
	out := ""
	for _, n := range tr.Nodes() {
		out += fmt.Sprintf("%s %d;", n.Name(), n.DaemonPID(t))
	}
	return out
}

// TestCertificatesInPartition gives the certificates another life while a machine is cut off. With FAULTS it cuts a server and a
// node off from when their certificates are fresh until after they have to be renewed.
func TestCertificatesInPartition(t *testing.T) {
	life, longer, shape := 2*time.Minute, 3*time.Minute, lab.Shape{Servers: 1, Nodes: 1}
	if !short() {
		shape = lab.Shape{Servers: 3, Nodes: 1}
	}
	tr := begin(t, shape)
	tr.up(t, "web", 4)
	by := tr.Leader(t)
	by.Gantry(t, "cluster", "configure", "--down-after", "1h") // no instance moves
	running, processes := starts(t, by), tr.daemons(t)
	cut := []*lab.Node{tr.Node(shape.Servers)}
	if !short() {
		cut = append(cut, tr.follower(t))
	}

	had := certificates(t, tr.Nodes())
	cut[0].Isolate(t)
	by.Gantry(t, "cluster", "configure", "--certificate-life", life.String())
	reached := maps.Clone(had)
	delete(reached, cut[0])
	awaitRenewed(t, by, reached, life)
	if c, err := certificateOf(cut[0]); err != nil || c.SerialNumber.Cmp(had[cut[0]].SerialNumber) != 0 {
		t.Errorf("a machine that is cut off has a new certificate: %v", err)
	}
	tr.Heal(t)
	awaitRenewed(t, by, map[*lab.Node]*x509.Certificate{cut[0]: had[cut[0]]}, life)
	if !short() {
		tr.missRenewal(t, by, cut, life)
		had = certificates(t, tr.Nodes())
		by.Gantry(t, "cluster", "configure", "--certificate-life", longer.String())
		awaitRenewed(t, by, had, longer)
	}
	sameStarts(t, by, running)
	if now := tr.daemons(t); now != processes {
		t.Errorf("the daemons were %s and are %s", processes, now)
	}
	tr.settle(t)
}

// TestWrongLeaderAndCertificates has certificates renewed while the clock of the leader is two hours ahead, so that what it signs is
// good for nobody else. With two nodes it knows, and signs nothing; with one it cannot know, and the node does not take it. Once the
// clock is right all have new ones.
func TestWrongLeaderAndCertificates(t *testing.T) {
	heavy(t)
	const life = 2 * time.Minute
	for nodes, words := range map[int][]string{1: {"is good from ", "not yet valid"}, 2: {"ahead of those of most machines"}} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			tr := begin(t, lab.Shape{Servers: 1, Nodes: nodes})
			tr.up(t, "web", 3)
			leader, had := tr.Node(0), certificates(t, tr.Nodes())
			running := starts(t, leader)
			leader.SetClock(t, 2*time.Hour)
			awaitFinding(t, leader, tr.Nodes()[2-nodes], "the clock", " of node "+leader.Name())
			leader.Gantry(t, "cluster", "configure", "--certificate-life", life.String())
			for _, n := range tr.Nodes()[1:] {
				lab.Eventually(t, time.Minute, n.Name()+" is refused a certificate, or refuses it", func() error {
					if log := n.DaemonLog(); !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(log, w) }) {
						return errors.New("its log does not tell")
					}
					return nil
				})
				if c, err := certificateOf(n); err != nil || c.SerialNumber.Cmp(had[n].SerialNumber) != 0 {
					t.Errorf("%s has a certificate that is good from %s on: %v", n.Name(), c.NotBefore, err)
				}
			}
			if nodes > 1 {
				if got := leader.Try("cluster", "rotate-ca"); got.Code == 0 || !containsAll(got.Stderr, words) {
					t.Errorf("another root: exit %d: %s", got.Code, got.Stderr)
				}
			}
			leader.SetClock(t, 0)
			awaitRenewed(t, leader, had, life)
			sameStarts(t, leader, running)
			tr.settle(t)
		})
	}
}

// missRenewal cuts machines off while their certificates have to be renewed, and not for longer than those are good.
func (tr *trial) missRenewal(t *testing.T, by *lab.Node, cut []*lab.Node, life time.Duration) {
	t.Helper()
	all := awaitRenewed(t, by, certificates(t, tr.Nodes()), life)
	others := maps.Clone(all)
	var due time.Time
	for _, n := range cut {
		n.Isolate(t)
		delete(others, n)
		if at := all[n].NotAfter.Add(-life / 3); at.After(due) {
			due = at
		}
	}
	awaitRenewed(t, by, others, life)
	time.Sleep(time.Until(due.Add(time.Second)))
	for _, n := range cut {
		if c, err := certificateOf(n); err != nil || c.SerialNumber.Cmp(all[n].SerialNumber) != 0 {
			t.Errorf("%s is cut off and has a new certificate: %v", n.Name(), err)
		}
	}
	tr.Heal(t)
	missed := map[*lab.Node]*x509.Certificate{}
	for _, n := range cut {
		missed[n] = all[n]
	}
	awaitRenewed(t, by, missed, life)
	awaitRenewed(t, by, certificates(t, tr.Nodes()), life)
	awaitRenewed(t, by, certificates(t, tr.Nodes()), life)
}

// TestCertificateEndsInPartition cuts a node and a server off for longer than their certificates are good: it is said before they
// end, and the two are refused, are told how they come back, and come back so.
func TestCertificateEndsInPartition(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 3, Nodes: 1})
	tr.up(t, "web", 8)
	by := tr.Leader(t)
	away := map[*lab.Node]string{tr.Node(3): "node", tr.follower(t): "server"}
	by.Gantry(t, "cluster", "configure", "--down-after", "1h") // what runs there is not made again elsewhere
	const life = time.Minute
	had := certificates(t, tr.Nodes())
	by.Gantry(t, "cluster", "configure", "--certificate-life", life.String())
	fresh := awaitRenewed(t, by, had, life)
	running := map[*lab.Node]int{}
	for n := range away {
		running[n] = len(ids(n))
		n.Isolate(t)
	}
	soonest := slices.SortedFunc(maps.Keys(away), func(a, b *lab.Node) int { return fresh[a].NotAfter.Compare(fresh[b].NotAfter) })
	for _, n := range soonest {
		awaitFinding(t, by, n, "the certificate of node "+n.Name(), " ends at ")
	}
	for n := range away {
		time.Sleep(time.Until(fresh[n].NotAfter.Add(2 * time.Second)))
	}
	tr.Heal(t)
	for n := range away {
		refusedForGood(t, by, n)
		if c, err := certificateOf(n); err != nil || c.SerialNumber.Cmp(fresh[n].SerialNumber) != 0 {
			t.Errorf("%s was let in with a certificate that has ended: %v", n.Name(), err)
		}
		if left := len(ids(n)); left != running[n] {
			t.Errorf("%s ran %d instances and runs %d", n.Name(), running[n], left)
		}
	}
	for n, role := range away {
		n.Wipe(t)
		by.Gantry(t, "node", "rm", "--force", n.Name())
		n.Rejoin(t, role)
	}
	tr.settle(t)
}

// refusedForGood waits until a machine, its log and the cluster say that its certificate has ended, and what to do.
func refusedForGood(t *testing.T, by, n *lab.Node) {
	t.Helper()
	lab.Eventually(t, time.Minute, n.Name()+" says what is wrong and what to do", func() error {
		got := n.Try("ps")
		if got.Code == 0 || !strings.Contains(got.Stderr, "this machine's certificate ended at") || !strings.Contains(got.Stderr, "gantry node rm --force "+n.Name()) {
			return fmt.Errorf("%d: %s", got.Code, got.Stderr)
		}
		if !strings.Contains(n.DaemonLog(), "this machine's certificate ended at") {
			return errors.New("its log does not tell")
		}
		return nil
	})
	lab.Eventually(t, time.Minute, "the cluster says so of "+n.Name(), func() error {
		got := by.Try("cluster", "status")
		said := "the certificate of node " + n.Name() + " ended at"
		if got.Code != 2 || !strings.Contains(got.Stdout, said) || !strings.Contains(got.Stdout, "gantry node rm --force "+n.Name()) {
			return fmt.Errorf("%d: %s", got.Code, got.Stdout)
		}
		return nil
	})
}

// TestCertificatesEndTogether has all servers away for longer than their certificates are good: none can let another in. One goes
// on alone, and the others join it again.
func TestCertificatesEndTogether(t *testing.T) {
	heavy(t)
	tr := begin(t, three)
	tr.up(t, "web", 6)
	const life = time.Minute
	had, first := certificates(t, tr.Nodes()), tr.Node(2) // the last one that is killed has every change
	first.Gantry(t, "cluster", "configure", "--certificate-life", life.String())
	awaitRenewed(t, first, had, life)
	for _, n := range tr.Nodes() {
		n.KillDaemon(t)
	}
	for _, c := range certificates(t, tr.Nodes()) {
		time.Sleep(time.Until(c.NotAfter.Add(time.Second)))
	}
	tr.StartDaemons(t)
	for _, n := range tr.Nodes() {
		lab.Eventually(t, time.Minute, "it says what is wrong and what to do", func() error {
			got := n.Try("ps")
			if got.Code == 0 || !strings.Contains(got.Stderr, "this machine's certificate ended at") || !strings.Contains(got.Stderr, "gantry cluster recover") {
				return fmt.Errorf("%s: %d: %s", n.Name(), got.Code, got.Stderr)
			}
			return nil
		})
	}
	running := ids(first)
	first.Gantry(t, "cluster", "recover", "--force")
	lab.Eventually(t, time.Minute, "it goes on alone, with a new certificate", func() error {
		if c, err := certificateOf(first); err != nil || time.Now().After(c.NotAfter) {
			return fmt.Errorf("%v", err)
		}
		_, err := first.Machines()
		return err
	})
	for id := range running {
		if !ids(first)[id] {
			t.Errorf("%s did not outlive it", id)
		}
	}
	for _, n := range tr.Except(first) {
		n.Wipe(t)
	}
	for _, n := range tr.Except(first) {
		first.Gantry(t, "node", "rm", "--force", n.Name())
		n.Rejoin(t, "server")
	}
	tr.settle(t)
}
