package network

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func TestVirtualAddressReachesReadyInstancesInTurn(t *testing.T) {
	l := newLab(t)
	a, b, c, client := l.container("a"), l.container("b"), l.container("c"), l.container("client")
	for _, s := range []*container{a, b, c} {
		s.serve(80)
	}
	web := service("prod", "web", "10.96.0.1", []string{"front"}, a, b, c)
	web.Endpoints[2].Ready = false
	front := []*gantryv1.Network{network("prod/shop/front", 1, false)}
	l.apply(front, web, service("prod", "client", "", []string{"front"}, client))

	hits := map[string]int{}
	for range 10 {
		who, from, err := client.ask("10.96.0.1:80")
		must(t, err)
		if from != client.IPv4.String() {
			t.Fatalf("the server sees %s, not the client %s", from, client.IPv4)
		}
		hits[who]++
	}
	if hits["a"] != 5 || hits["b"] != 5 {
		t.Fatalf("10 connections went to %v, want 5 each to a and b", hits)
	}
	if _, _, err := askHost("10.96.0.1:80"); err != nil {
		t.Fatalf("from the host: %v", err)
	}
}
