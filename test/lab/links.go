package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// link is one direction between two ends: machines by index, or the outside.
type link struct{ from, to int }

// outside is the host as an end of links: the test itself, and all that is reached through it.
const outside = -1

// harm is what happens to frames on a link.
type harm struct {
	cut     bool
	permill int // frames lost in a thousand
}

// Cut breaks the link between two machines, both ways. Nothing tells them: their interfaces stay up.
func (l *Lab) Cut(t testing.TB, a, b *Node) {
	t.Helper()
	l.harmLinks(t, harm{cut: true}, link{a.index, b.index}, link{b.index, a.index})
}

// CutOneWay drops what one machine sends to another; the way back works.
func (l *Lab) CutOneWay(t testing.TB, from, to *Node) {
	t.Helper()
	l.harmLinks(t, harm{cut: true}, link{from.index, to.index})
}

// Partition cuts all links between machines of different groups. A machine in no group is alone. The test still reaches all.
func (l *Lab) Partition(t testing.TB, groups ...[]*Node) {
	t.Helper()
	side := map[*Node]int{}
	for i, group := range groups {
		for _, n := range group {
			side[n] = i + 1
		}
	}
	var cut []link
	for _, a := range l.nodes {
		for _, b := range l.nodes {
			if a != b && (side[a] != side[b] || side[a] == 0) {
				cut = append(cut, link{a.index, b.index})
			}
		}
	}
	l.harmLinks(t, harm{cut: true}, cut...)
}

// Lose drops that many of a hundred frames on the link between two machines, both ways, each for itself.
func (l *Lab) Lose(t testing.TB, percent float64, a, b *Node) {
	t.Helper()
	l.harmLinks(t, harm{permill: int(percent * 10)}, link{a.index, b.index}, link{b.index, a.index})
}

// Heal mends every link: nothing is cut, lost or delayed any more. It does not plug machines in.
func (l *Lab) Heal(t testing.TB) {
	t.Helper()
	l.mu.Lock()
	l.harmed = map[link]harm{}
	l.applyLinks(t)
	l.mu.Unlock()
	for _, n := range l.nodes {
		n.Delay(t, 0)
	}
}

// Isolate cuts the machine off from everything, both ways.
func (n *Node) Isolate(t testing.TB) {
	t.Helper()
	n.lab.harmLinks(t, harm{cut: true}, append(n.links(false), n.links(true)...)...)
}

// Mute drops everything the machine sends; it still hears the others.
func (n *Node) Mute(t testing.TB) {
	t.Helper()
	n.lab.harmLinks(t, harm{cut: true}, n.links(false)...)
}

// Deafen drops everything sent to the machine; the others still hear it.
func (n *Node) Deafen(t testing.TB) {
	t.Helper()
	n.lab.harmLinks(t, harm{cut: true}, n.links(true)...)
}

// Lose drops that many of a hundred frames that the machine sends and receives.
func (n *Node) Lose(t testing.TB, percent float64) {
	t.Helper()
	n.lab.harmLinks(t, harm{permill: int(percent * 10)}, append(n.links(false), n.links(true)...)...)
}

// Heal mends the machine's own links, and its delay.
func (n *Node) Heal(t testing.TB) {
	t.Helper()
	n.lab.harmLinks(t, harm{}, append(n.links(false), n.links(true)...)...)
	n.Delay(t, 0)
}

// Flap isolates the machine and heals it in turn, each for that long, until the time is over. It ends healed.
func (n *Node) Flap(t testing.TB, each, total time.Duration) {
	t.Helper()
	for end := time.Now().Add(total); time.Now().Before(end); {
		n.Isolate(t)
		time.Sleep(each)
		n.Heal(t)
		time.Sleep(each)
	}
}

// links lists the machine's links in one direction.
func (n *Node) links(inward bool) []link {
	out := []link{}
	add := func(other int) {
		if inward {
			out = append(out, link{other, n.index})
		} else {
			out = append(out, link{n.index, other})
		}
	}
	add(outside)
	for _, other := range n.lab.nodes {
		if other != n {
			add(other.index)
		}
	}
	return out
}

// harmLinks replaces what is wrong with the links.
func (l *Lab) harmLinks(t testing.TB, h harm, links ...link) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, each := range links {
		if h == (harm{}) {
			delete(l.harmed, each)
		} else {
			l.harmed[each] = h
		}
	}
	l.applyLinks(t)
}

// whole reports whether nothing is wrong with the machine's links.
func (n *Node) whole() bool {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	for at := range n.lab.harmed {
		if at.from == n.index || at.to == n.index {
			return false
		}
	}
	return true
}

// applyLinks replaces the rules of the bridge in one transaction.
func (l *Lab) applyLinks(t testing.TB) {
	t.Helper()
	chains := map[string]*strings.Builder{"forward": {}, "input": {}, "output": {}}
	for at, h := range l.harmed {
		hook, match := "forward", ""
		if at.from == outside {
			hook = "output"
		} else {
			match += "iifname " + l.machine(at.from).ports()
		}
		if at.to == outside {
			hook = "input"
		} else {
			match += " oifname " + l.machine(at.to).ports()
		}
		if !h.cut {
			match += fmt.Sprintf(" numgen random mod 1000 < %d", h.permill)
		}
		fmt.Fprintf(chains[hook], "%s drop; ", match)
	}
	rules := fmt.Sprintf("table bridge %s {}\ndelete table bridge %[1]s\ntable bridge %[1]s {\n", l.name)
	for hook, text := range chains {
		rules += fmt.Sprintf("chain %s { type filter hook %[1]s priority 0; %s }\n", hook, text)
	}
	run(t, time.Minute, "nft", rules+"}")
}

// machine returns the machine of a link.
func (l *Lab) machine(index int) *Node {
	for _, n := range l.nodes {
		if n.index == index {
			return n
		}
	}
	panic("lab: a link of a machine that is gone")
}

// ports is the set of the machine's bridge ports in the notation of nft.
func (n *Node) ports() string { return fmt.Sprintf("{ %s, %s }", n.name, n.relayPort()) }
