package network

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/addresses"
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
			a := addresses.At(next + uint32(rng.IntN(2)))
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

// dump is all sets with their elements, and the rules and turns of each chain, in a fixed order. Segments are numbered alike in
// both, because numbers last as long as the Network; rows are not, and whose turn comes first depends on what was before.
func dump(t *testing.T) string {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	table := &nftables.Table{Name: "gantry0", Family: nftables.TableFamilyINet}
	var lines []string
	sets, err := c.GetSets(table)
	must(t, err)
	rows := map[string][]string{} // to backends, by turn
	for _, s := range sets {
		s.Table = table
		elements, err := c.GetSetElements(s)
		must(t, err)
		for _, e := range elements {
			if strings.HasPrefix(s.Name, "turns.") {
				at := fmt.Sprintf("%s %x", s.Name, e.Key[:4])
				rows[at] = append(rows[at], fmt.Sprintf("%x", e.Val))
				continue
			}
			lines = append(lines, fmt.Sprintf("%s %x", s.Name, e.Key))
		}
		if !strings.HasPrefix(s.Name, "turns.") {
			lines = append(lines, s.Name)
		}
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	must(t, err)
	for _, chain := range chains {
		if !strings.Contains(chain.Name, ".") {
			continue // fixed, and the library cannot read all of them back
		}
		rules, err := c.GetRules(table, chain)
		must(t, err)
		lines = append(lines, fmt.Sprintf("chain %s %d %s", chain.Name, len(rules), turnsOf(rules, rows)))
	}
	if len(rows) > 0 {
		t.Errorf("turns that no chain uses: %v", rows)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// turnsOf takes the backends that a chain spreads connections over out of rows.
func turnsOf(rules []*nftables.Rule, rows map[string][]string) string {
	var row string
	var modulus uint32
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			switch e := e.(type) {
			case *expr.Immediate:
				if row == "" {
					row = fmt.Sprintf("%x", e.Data)
				}
			case *expr.Numgen:
				modulus = e.Modulus
			case *expr.Lookup:
				if modulus > 0 {
					row = e.SetName + " " + row
				}
			}
		}
	}
	backends := rows[row]
	delete(rows, row)
	slices.Sort(backends)
	return fmt.Sprintf("%d %v", modulus, backends)
}

// TestManyServices fills several maps of turns, empties them and fills them again: every service leads to its instances.
func TestManyServices(t *testing.T) {
	l := newLab(t)
	a, client := l.container("a"), l.container("client")
	a.serve(80)
	nets := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	caller := service("prod", "client", "", []string{"front"}, client)
	all := []*gantryv1.ServiceEndpoints{caller}
	for i := range 3*rowsPerMap + 5 {
		all = append(all, service("prod", fmt.Sprint("s", i), fmt.Sprintf("10.96.1.%d", i+1), []string{"front"}, a))
	}
	for range 2 {
		l.apply(nets, all[:rowsPerMap]...)
		l.apply(nets, all...)
		for _, i := range []int{1, rowsPerMap, rowsPerMap + 1, 2 * rowsPerMap, len(all) - 1} {
			if _, _, err := client.ask(all[i].VirtualIp + ":80"); err != nil {
				t.Errorf("%s: %v", all[i].Service, err)
			}
		}
		l.apply(nets, caller)
		if n := len(l.Network.nft.turns.maps); n != 0 {
			t.Errorf("%d maps are left without a service", n)
		}
		client.cannotReach("10.96.1.1:80")
	}
}

// TestApplyRecovers lets the table vanish while nobody watches, and the kernel refuse another. It is counted.
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
	name := l.Network.nft.table.Name
	l.Network.nft.table.Name = strings.Repeat("x", 300) // which the kernel refuses
	if l.Apply(t.Context(), State{}) == nil {
		t.Error("a table was changed that is not there")
	}
	l.Network.nft.table.Name = name
	l.apply(nets, caller)
	f := l.Figures()
	if n, _, _ := f.Applies.Read(); n != 5 || f.Failed.Value() != 1 || f.Rewrites.Value() != 2 {
		t.Errorf("%d of %d calls failed, %d tables were written as a whole; want 1 of 5, 2", f.Failed.Value(), n, f.Rewrites.Value())
	}
}
