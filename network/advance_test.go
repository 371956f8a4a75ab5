package network

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/addresses"
	"github.com/gantryd/gantry/network/overlay"
	"github.com/gantryd/gantry/network/segment"
)

// TestAdvancingIsTheSameAsBuildingAnew walks through random states. Model and differences must be those that are found by
// building every state anew.
func TestAdvancingIsTheSameAsBuildingAnew(t *testing.T) {
	local, virtual := netip.MustParsePrefix("10.64.3.0/24"), netip.MustParsePrefix("10.96.0.0/16")
	advanced := 0
	for seed := range uint64(400) {
		rng, table := rand.New(rand.NewPCG(seed, 1)), segment.New()
		s := randomState(rng)
		var peers []overlay.Peer
		b := newModel(s, peers, local, virtual, table)
		for step := range 30 {
			old := newModel(s, peers, local, virtual, table)
			s = turned(rng, s)
			if rng.IntN(5) == 0 {
				peers = randomPeers(rng)
			}
			want := newModel(s, peers, local, virtual, table)
			c, ok := b.advance(s, peers)
			if !ok {
				if !reflect.DeepEqual(b.model, old.model) {
					t.Fatalf("seed %d, step %d: a model that could not advance was changed", seed, step)
				}
				b = want
				continue
			}
			advanced++
			b.forget()
			if !reflect.DeepEqual(b.model, want.model) {
				t.Fatalf("seed %d, step %d: advanced and built anew differ by %+v", seed, step, compare(&b.model, &want.model))
			}
			if d := compare(&old.model, &want.model); !reflect.DeepEqual(c, d) {
				t.Fatalf("seed %d, step %d: noted\n%+v\ncompared\n%+v", seed, step, c, d)
			}
		}
	}
	if advanced < 2400 {
		t.Errorf("only %d of 12000 steps were taken as such", advanced)
	}
}

// TestSegmentsOfServicesThatAreGoneAreForgotten lets an app with a network of its own come and go many times.
func TestSegmentsOfServicesThatAreGoneAreForgotten(t *testing.T) {
	l := newLab(t)
	c := l.container("a")
	for n := range uint32(300) {
		name := fmt.Sprint("n", n)
		l.apply([]*gantryv1.Network{network("prod/shop/"+name, n+1, true)}, service("prod", name, "", []string{name}, c))
	}
	if known, secluded := l.segments.Len(), len(l.applied.secluded); known > 70 || secluded > 70 {
		t.Errorf("%d segments and %d secluded ones of 300 are known", known, secluded)
	}
}

func randomPeers(rng *rand.Rand) (out []overlay.Peer) {
	for n := range 5 {
		if rng.IntN(2) == 0 {
			out = append(out, overlay.Peer{Address: addresses.At(192<<24 | uint32(n+1)), Subnet: netip.PrefixFrom(addresses.At(10<<24|uint32(n)<<8), 24)})
		}
	}
	return out
}

// turned is a state in which endpoints of a few services changed, services came and went, and seldom something else.
func turned(rng *rand.Rand, s State) State {
	if rng.IntN(15) == 0 {
		return randomState(rng)
	}
	out := State{Networks: s.Networks}
	var freed []*gantryv1.Endpoint
	for _, e := range s.Endpoints {
		if rng.IntN(2) == 0 {
			out.Endpoints = append(out.Endpoints, e)
			continue
		}
		e = proto.Clone(e).(*gantryv1.ServiceEndpoints)
		for i, ep := range e.Endpoints {
			ep.Ready, ep.Weight = rng.IntN(3) > 0, rng.Int32N(3)
			if rng.IntN(4) == 0 {
				freed = append(freed, ep)
				e.Endpoints = append(e.Endpoints[:i:i], e.Endpoints[i+1:]...)
				break
			}
		}
		switch rng.IntN(4) {
		case 0: // a new one, of this node or another
			a := fmt.Sprintf("10.64.%d.%d", 3+rng.IntN(2), 100+rng.IntN(100))
			e.Endpoints = append(e.Endpoints, &gantryv1.Endpoint{Address: a, Ready: rng.IntN(2) == 0})
		case 1: // one that was another service's
			if len(freed) > 0 {
				e.Endpoints, freed = append(e.Endpoints, freed[0]), freed[1:]
			}
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	return comeAndGo(rng, out)
}

// comeAndGo takes a service out, puts one in, perhaps with a network, or changes how one is attached and published.
func comeAndGo(rng *rand.Rand, s State) State {
	n := rng.IntN(6)
	name := fmt.Sprintf("prod/shop/n%d", rng.IntN(4))
	switch {
	case n == 0 && len(s.Endpoints) > 0:
		i := rng.IntN(len(s.Endpoints))
		s.Endpoints = slices.Delete(s.Endpoints, i, i+1)
	case n == 1:
		number := 100 + rng.IntN(50)
		if rng.IntN(2) == 0 {
			name = fmt.Sprintf("prod/shop/x%d", number)
			s.Networks = append(slices.Clone(s.Networks), network(name, uint32(number), rng.IntN(2) == 0))
		}
		e := service("prod", fmt.Sprint("x", number), fmt.Sprintf("10.96.1.%d", number), nil)
		e.Attachments = append(e.Attachments, &gantryv1.NetworkAttachment{Network: name})
		for range rng.IntN(3) {
			a := fmt.Sprintf("10.64.%d.%d", 3+rng.IntN(2), 100+rng.IntN(100))
			e.Endpoints = append(e.Endpoints, &gantryv1.Endpoint{Address: a, Ready: rng.IntN(2) == 0})
		}
		s.Endpoints = append(s.Endpoints, e)
	case n == 2 && len(s.Endpoints) > 0:
		i := rng.IntN(len(s.Endpoints))
		e := proto.Clone(s.Endpoints[i]).(*gantryv1.ServiceEndpoints)
		e.Attachments = []*gantryv1.NetworkAttachment{{Network: name}}
		e.Ports = []*gantryv1.PortPublish{tcpPort(uint32(8000+rng.IntN(10)), 80)}
		s.Endpoints[i] = e
	case n == 3 && len(s.Networks) > 0:
		i := rng.IntN(len(s.Networks))
		s.Networks = slices.Delete(slices.Clone(s.Networks), i, i+1)
	}
	return s
}

func TestWhatThisNodeHasNothingToDoWithIsLeftOut(t *testing.T) {
	local, virtual := netip.MustParsePrefix("10.64.3.0/24"), netip.MustParsePrefix("10.96.0.0/16")
	at := func(name, net, vip string, addresses ...string) *gantryv1.ServiceEndpoints {
		e := service("prod", name, vip, []string{net})
		for _, a := range addresses {
			e.Endpoints = append(e.Endpoints, &gantryv1.Endpoint{Address: a, Ready: true})
		}
		return e
	}
	b := newModel(State{
		Networks:  []*gantryv1.Network{network("prod/shop/here", 1, false), network("prod/shop/there", 2, true)},
		Endpoints: []*gantryv1.ServiceEndpoints{at("a", "here", "", "10.64.3.2", "10.64.4.2"), at("b", "there", "10.96.0.2", "10.64.4.3", "10.64.5.3")},
	}, nil, local, virtual, segment.New())
	if len(b.instances) != 4 || len(b.segments) != 2 || len(b.live) != 1 || len(b.internal) != 0 || len(b.reach) != 2 {
		t.Errorf("%+v", b.model)
	}
	if len(b.services) != 1 { // this node's own processes may talk to every service
		t.Errorf("services: %v", b.services)
	}
}
