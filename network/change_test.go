package network

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestDifferencesAddUp applies random states one after the other and compares the kernel's table with one written anew.
func TestDifferencesAddUp(t *testing.T) {
	l := newLab(t)
	rng := rand.New(rand.NewPCG(1, 2))
	s := randomState(rng)
	for step := range 60 {
		if step%3 == 0 {
			s = randomState(rng)
		} else {
			s = turned(rng, s)
		}
		must(t, l.Apply(t.Context(), s))
		got := dump(t)
		must(t, l.reassert())
		if want := dump(t); got != want {
			t.Fatalf("step %d: by differences\n%s\nanew\n%s", step, got, want)
		}
	}
}

func randomState(rng *rand.Rand) State {
	var s State
	for n := range 4 {
		if rng.IntN(5) > 0 {
			s.Networks = append(s.Networks, network(fmt.Sprintf("prod/shop/n%d", n), uint32(n+1), rng.IntN(2) == 0))
		}
	}
	next := uint32(10<<24 | 64<<16 | 3<<8 | 2)
	for i := range 6 {
		if rng.IntN(4) == 0 {
			continue
		}
		e := service("prod", fmt.Sprint("s", i), fmt.Sprintf("10.96.0.%d", i+1), nil)
		for n := range 4 {
			if rng.IntN(3) == 0 {
				e.Attachments = append(e.Attachments, &gantryv1.NetworkAttachment{Network: fmt.Sprintf("prod/shop/n%d", n)})
			}
		}
		for range rng.IntN(4) {
			a := address(next + uint32(rng.IntN(2)))
			next += 2
			e.Endpoints = append(e.Endpoints, &gantryv1.Endpoint{Address: a.String(), Address6: "fd00::" + fmt.Sprint(a.As4()[3]), Ready: rng.IntN(3) > 0})
		}
		if rng.IntN(2) == 0 {
			e.Ports = []*gantryv1.PortPublish{tcpPort(uint32(8000+rng.IntN(3)), 80),
				{HostIp: []string{"", "127.0.0.1", "::1"}[rng.IntN(3)], HostPort: 9000, ContainerPort: 90, Protocol: "udp"}}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// dump is all named sets with their elements, and how many rules each chain has, in a fixed order. Segments are numbered
// alike in both, because numbers last as long as the Network.
func dump(t *testing.T) string {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	table := &nftables.Table{Name: "gantry0", Family: nftables.TableFamilyINet}
	var lines []string
	sets, err := c.GetSets(table)
	must(t, err)
	for _, s := range sets {
		if s.Anonymous {
			continue
		}
		s.Table = table
		elements, err := c.GetSetElements(s)
		must(t, err)
		for _, e := range elements {
			lines = append(lines, fmt.Sprintf("%s %x", s.Name, e.Key))
		}
		lines = append(lines, s.Name)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	must(t, err)
	for _, chain := range chains {
		if !strings.Contains(chain.Name, ".") {
			continue // fixed, and the library cannot read all of them back
		}
		rules, err := c.GetRules(table, chain)
		must(t, err)
		lines = append(lines, fmt.Sprintf("chain %s %d", chain.Name, len(rules)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestApplyRecovers lets the table vanish while nobody watches.
func TestApplyRecovers(t *testing.T) {
	l := newLab(t)
	a, client := l.container("a"), l.container("client")
	a.serve(80)
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	web, caller := service("prod", "web", "10.96.0.1", []string{"front"}, a), service("prod", "client", "", []string{"front"}, client)
	l.apply(nets, web)
	l.stop()
	l.Network.nft.conn.FlushRuleset() // by our own socket, so that it would not count as foreign either
	must(t, l.Network.nft.conn.Flush())
	l.apply(nets, web, caller)
	if _, _, err := client.ask("10.96.0.1:80"); err != nil {
		t.Error(err)
	}
	l.apply(nets, caller)
	client.cannotReach("10.96.0.1:80")
}
