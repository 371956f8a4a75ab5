package network

import (
	"net"
	"testing"
)

func TestInstancesReachThoseOfOtherNodes(t *testing.T) {
	overlays(t, func(t *testing.T, kind func(*Options)) {
		l := newLAN(t, 2, kind)
		a, b := l.machines[0].run("a"), l.machines[1].run("b")
		a.serve(80)
		b.serve(80)
		stranger := l.machines[0].run("stranger")
		l.apply(front(), service("prod", "web", "10.96.0.1", []string{"front"}, b), service("prod", "client", "", []string{"front"}, a))
		for _, to := range []string{b.IPv4.String() + ":80", "10.96.0.1:80", "[" + b.IPv6.String() + "]:80"} {
			who, from, err := a.ask(to)
			if who != "b" || from != a.IPv4.String() && from != a.IPv6.String() {
				t.Errorf("a asks %s: answered by %q, which sees %q, %v", to, who, from, err)
			}
			stranger.cannotReach(to)
		}
		for _, to := range []string{b.IPv4.String() + ":80", "10.96.0.1:80"} {
			if _, from, err := ask(dialIn(t, l.machines[0].ns, to)); from != "10.64.1.1" {
				t.Errorf("a process of the other node asks %s: seen as %q, %v", to, from, err)
			}
		}
		if eth := mtu(t, a); eth != 1500-map[string]int{"vxlan": 50, "wireguard": 80}[l.machines[0].overlay()] {
			t.Errorf("a's link has an MTU of %d", eth)
		}
	})
}

func (m *machine) overlay() string {
	if m.opts.Overlay == "" {
		return "vxlan"
	}
	return m.opts.Overlay
}

func mtu(t *testing.T, c *container) (size int) {
	t.Helper()
	must(t, do(t, c.ns, func() error {
		eth, err := net.InterfaceByName(inside)
		if err == nil {
			size = eth.MTU
		}
		return err
	}))
	return size
}
