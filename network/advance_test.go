package network

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestAdvancingIsTheSameAsBuildingAnew walks through random states. Model and differences must be those that are found by
// building every state anew.
func TestAdvancingIsTheSameAsBuildingAnew(t *testing.T) {
	local, virtual := netip.MustParsePrefix("10.64.3.0/24"), netip.MustParsePrefix("10.96.0.0/16")
	advanced := 0
	for seed := range uint64(400) {
		rng, table := rand.New(rand.NewPCG(seed, 1)), newSegmentTable()
		s := randomState(rng)
		b := newModel(s, nil, local, virtual, table)
		for step := range 30 {
			old := newModel(s, nil, local, virtual, table)
			s = turned(rng, s)
			want := newModel(s, nil, local, virtual, table)
			c, ok := b.advance(s, nil)
			if !ok {
				if !reflect.DeepEqual(b.model, old.model) {
					t.Fatalf("seed %d, step %d: a model that could not advance was changed", seed, step)
				}
				b = want
				continue
			}
			advanced++
			if !reflect.DeepEqual(b.model, want.model) {
				t.Fatalf("seed %d, step %d: advanced and built anew differ by %+v", seed, step, compare(&b.model, &want.model))
			}
			if d := compare(&old.model, &want.model); !reflect.DeepEqual(c, d) {
				t.Fatalf("seed %d, step %d: noted\n%+v\ncompared\n%+v", seed, step, c, d)
			}
		}
	}
	if advanced < 800 {
		t.Errorf("only %d of 12000 steps were taken as such", advanced)
	}
}

// turned is a state in which endpoints of a few services changed, and seldom something else.
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
	return out
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
	}, nil, local, virtual, newSegmentTable())
	if len(b.instances) != 4 || len(b.segments) != 2 || len(b.live) != 1 || len(b.internal) != 0 || len(b.reach) != 2 {
		t.Errorf("%+v", b.model)
	}
	if len(b.services) != 1 { // this node's own processes may talk to every service
		t.Errorf("services: %v", b.services)
	}
}
