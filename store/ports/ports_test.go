package ports_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/ports"
	"github.com/gantryd/gantry/store/progress"
)

type list = []*gantryv1.PortPublish

func tcp(host, container uint32) *gantryv1.PortPublish {
	return &gantryv1.PortPublish{HostPort: host, ContainerPort: container, Protocol: "tcp", Mode: "ingress"}
}

func service(name string, published ...*gantryv1.PortPublish) *gantryv1.Service {
	return &gantryv1.Service{Meta: store.NewMeta("p/a/" + name), Published: published}
}

func release(name string, number int64, published ...*gantryv1.PortPublish) *gantryv1.Release {
	return &gantryv1.Release{Meta: store.NewMeta(progress.ReleaseKey("p/a/"+name, number)), Spec: &gantryv1.ServiceSpec{
		Container: &gantryv1.ContainerSpec{Ports: published},
	}}
}

// assign assigns in a store of these objects and returns the host ports that a release then has.
func assign(t *testing.T, s *gantryv1.Service, objects ...store.Object) func(*gantryv1.Release) []uint32 {
	t.Helper()
	if err := ports.Assign(store.Fixed(objects...), s); err != nil {
		t.Fatal(err)
	}
	return func(r *gantryv1.Release) (out []uint32) {
		for _, p := range ports.Fill(r.Spec.Container.Ports, s.Published) {
			out = append(out, p.HostPort)
		}
		return out
	}
}

func TestPortsAreGivenOnceAndStay(t *testing.T) {
	web := service("web")
	udp := &gantryv1.PortPublish{ContainerPort: 80, Protocol: "udp"}
	local := &gantryv1.PortPublish{ContainerPort: 80, HostIp: "127.0.0.1"}
	here := &gantryv1.PortPublish{ContainerPort: 80, Mode: "host"}
	one := release("web", 1, tcp(0, 80), tcp(0, 80), udp, local, here, tcp(8080, 80))
	got := assign(t, web, one)(one)
	seen := map[uint32]bool{}
	for _, p := range got[:4] {
		if p < 30000 || p > 32767 {
			t.Errorf("port %d", p)
		}
		seen[p] = true
	}
	if !seen[got[0]] || got[0] == got[1] || got[0] == got[3] || got[1] == got[3] {
		t.Errorf("the same port twice: %v", got)
	}
	if got[4] != 0 || got[5] != 8080 {
		t.Errorf("ports of others: %v", got)
	}
	if one.Spec.Container.Ports[0].HostPort != 0 {
		t.Error("the release was changed")
	}
	// Another port comes, and the first release's stay for a return to it.
	before := proto.CloneOf(web)
	two := release("web", 2, tcp(0, 80), tcp(0, 81))
	ofTwo := assign(t, web, one, two)(two)
	if ofTwo[0] != got[0] || ofTwo[1] == 0 || len(web.Published) != 5 {
		t.Errorf("%v, then %v: %v", got, ofTwo, web.Published)
	}
	if again := ports.Fill(one.Spec.Container.Ports, web.Published); again[1].HostPort != got[1] {
		t.Errorf("going back gives %v", again)
	}
	// When the second is forgotten, so is its port.
	assign(t, web, one)
	if !proto.Equal(before, web) {
		t.Errorf("%v and %v", before, web)
	}
}

func TestPortsOfOthersAreNotGiven(t *testing.T) {
	web, rel := service("web"), release("web", 1, tcp(0, 80))
	wanted := assign(t, web, rel)(rel)[0] // what it gets if nobody else has it
	for name, other := range map[string]store.Object{
		"given":       service("db", tcp(wanted, 5432)),
		"named":       &gantryv1.Service{Meta: store.NewMeta("p/a/db"), Spec: release("db", 1, &gantryv1.PortPublish{HostPort: wanted, ContainerPort: 1}).Spec},
		"its own":     release("web", 2, tcp(wanted, 81)),
		"run":         &gantryv1.Instance{Meta: store.NewMeta("i"), Spec: &gantryv1.ContainerSpec{Ports: list{tcp(wanted, 1)}}},
		"of one node": &gantryv1.InstanceStatus{Meta: store.NewMeta("i"), Ports: list{tcp(wanted, 1)}},
	} {
		if got := assign(t, service("web"), rel, other)(rel)[0]; got == wanted || got == 0 {
			t.Errorf("%s: %d", name, got)
		}
	}
	udp := service("db", &gantryv1.PortPublish{HostPort: wanted, ContainerPort: 1, Protocol: "UDP"})
	if got := assign(t, service("web"), rel, udp)(rel)[0]; got != wanted {
		t.Errorf("a port of UDP is in the way of TCP: %d, not %d", got, wanted)
	}
}

func TestWhatIsNotOnTheBridgeGetsNoPorts(t *testing.T) {
	rel := release("web", 1, tcp(0, 80))
	rel.Spec.Container.Network = &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_HOST}
	web := service("web", tcp(30000, 80))
	if assign(t, web, rel); len(web.Published) != 0 {
		t.Errorf("%v", web.Published)
	}
}

func TestPortsRunOut(t *testing.T) {
	var all list
	for p := uint32(30000); p <= 60999; p++ {
		all = append(all, tcp(p, 1))
	}
	rel := release("web", 1, tcp(0, 80))
	err := ports.Assign(store.Fixed(rel, service("db", all...)), service("web"))
	if fault.KindOf(err) != fault.Exhausted {
		t.Fatalf("%v", err)
	}
	web := service("web")
	if got := assign(t, web, rel, service("db", all[:len(all)-1]...))(rel)[0]; got != 60999 {
		t.Fatalf("the last one is free, and it gets %d", got)
	}
}
