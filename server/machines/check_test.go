package machines

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
)

// requestOf makes a request with a public key, signed by another one.
func requestOf(t *testing.T, public *ecdsa.PublicKey) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	check(t, err)
	var csr struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	_, err = asn1.Unmarshal(der, &csr)
	check(t, err)
	own, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	check(t, err)
	theirs, err := x509.MarshalPKIXPublicKey(public)
	check(t, err)
	csr.TBS.FullBytes = []byte(strings.Replace(string(csr.TBS.FullBytes), string(own), string(theirs), 1))
	der, err = asn1.Marshal(csr)
	check(t, err)
	return der
}

// TestNobodyJoinsInTheNameOfAnother: public keys of machines are known to all who reach them.
func TestNobodyJoinsInTheNameOfAnother(t *testing.T) {
	b := newBench(t)
	_, request, err := identity.Request()
	check(t, err)
	csr, err := x509.ParseCertificateRequest(request)
	check(t, err)
	victim, err := b.joinWith(request, b.token("server", 0), "victim", "10.0.0.3")
	check(t, err)
	stolen := requestOf(t, csr.PublicKey.(*ecdsa.PublicKey))
	if id, err := NodeID(stolen); err != nil || id != victim.Node.Meta.Key {
		t.Fatalf("the request is not one in the victim's name: %s, %v", id, err)
	}
	if _, err := b.joinWith(stolen, b.token("node", 0), "thief", "10.0.0.4"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a key that the caller does not have: %v", err)
	}
	n, _ := store.Get[*gantryv1.Node](b.store.Snapshot(), victim.Node.Meta.Key)
	if n.GetRole() != "server" || n.GetName() != "victim" {
		t.Errorf("the machine has become %v", n)
	}
}

// TestATokenChangesNoRole: a machine that asks again, with whatever token, is what it has become.
func TestATokenChangesNoRole(t *testing.T) {
	b := newBench(t)
	_, request, err := identity.Request()
	check(t, err)
	for _, token := range []string{b.token("server", 0), b.token("node", 0)} {
		got, err := b.joinWith(request, token, "second", "10.0.0.2")
		check(t, err)
		if got.Node.Role != "server" {
			t.Errorf("the machine has become a %s", got.Node.Role)
		}
	}
}

func TestMachinesCannotSayWhatHarmsItsReaders(t *testing.T) {
	b := newBench(t)
	token := b.token("node", 0)
	many := map[string]string{}
	for n := range maxLabels + 1 {
		many[fmt.Sprint("l", n)] = "x"
	}
	for what, change := range map[string]func(*gantryv1.JoinRequest){
		"a name with an escape":  func(m *gantryv1.JoinRequest) { m.Name = "n\x1b[2J" },
		"a name with a newline":  func(m *gantryv1.JoinRequest) { m.Name = "n\nnode.down" },
		"a name like an option":  func(m *gantryv1.JoinRequest) { m.Name = "--force" },
		"a label with an escape": func(m *gantryv1.JoinRequest) { m.Labels = map[string]string{"rack": "\x1b]0;x\a"} },
		"a label without a name": func(m *gantryv1.JoinRequest) { m.Labels = map[string]string{"": "x"} },
		"a label of a megabyte":  func(m *gantryv1.JoinRequest) { m.Labels = map[string]string{"x": strings.Repeat("x", 1<<20)} },
		"many labels":            func(m *gantryv1.JoinRequest) { m.Labels = many },
	} {
		_, request, err := identity.Request()
		check(t, err)
		m := &gantryv1.JoinRequest{Token: token, CertificateRequest: request, Name: "n", Address: "10.0.0.7", ApiAddress: "10.0.0.7:7450"}
		change(m)
		if _, err := (&joining{b.API}).Join(t.Context(), connect.NewRequest(m)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestAMachineDescribesOnlyItself: another's address or key would take that one's traffic.
func TestAMachineDescribesOnlyItself(t *testing.T) {
	b := newBench(t)
	first, err := b.join(b.token("node", 0), "second", "10.0.0.2")
	check(t, err)
	second, err := b.join(b.token("node", 0), "third", "10.0.0.3")
	check(t, err)
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	describe := func(node *gantryv1.Node, api, overlay string) error {
		ctx := identity.WithCaller(t.Context(), identity.Caller{Node: node.Meta.Key})
		_, err := (&machineService{b.API}).Describe(ctx, connect.NewRequest(&gantryv1.DescribeRequest{
			Name: node.Name, Address: node.Address, ApiAddress: api, OverlayKey: overlay,
		}))
		return err
	}
	check(t, describe(first.Node, "10.0.0.2:7450", key))
	for what, c := range map[string]struct {
		api, key string
		want     fault.Kind
	}{
		"a server's address": {"10.0.0.1:7450", "", fault.Conflict},
		"another's key":      {"10.0.0.3:7450", key, fault.Conflict},
		"no key":             {"10.0.0.3:7450", "x\x1b[2J", fault.Invalid},
	} {
		if err := describe(second.Node, c.api, c.key); !fault.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestAServerHasAMemberOfItsOwn: with another's, demoting one would remove the other.
func TestAServerHasAMemberOfItsOwn(t *testing.T) {
	b := newBench(t)
	var nodes []*gantryv1.Node
	for _, a := range []string{"10.0.0.2", "10.0.0.3"} {
		got, err := b.join(b.token("server", 0), "s", a)
		check(t, err)
		nodes = append(nodes, got.Node)
	}
	add := func(n *gantryv1.Node, id string) error {
		b.council.added = id
		ctx := identity.WithCaller(t.Context(), identity.Caller{Node: n.Meta.Key})
		_, err := (&machineService{b.API}).AddMember(ctx, connect.NewRequest(&gantryv1.AddMemberRequest{PeerUrl: "https://10.0.0.2:7451", Empty: true}))
		return err
	}
	check(t, add(nodes[0], "m2"))
	check(t, add(nodes[0], "m2"))
	if err := add(nodes[1], "m2"); !fault.Is(err, fault.Conflict) {
		t.Errorf("another server was given the same member: %v", err)
	}
	b.council.infos, b.council.anew = append(b.council.infos, cluster.Info{ID: "m2", PeerURL: "https://10.0.0.2:7451"}), nil
	if err := add(nodes[1], "m3"); !fault.Is(err, fault.Conflict) || len(b.council.anew) > 0 {
		t.Errorf("another server had the member begin anew: %v, %v", err, b.council.anew)
	}
	check(t, add(nodes[0], "m3"))
	if n, _ := store.Get[*gantryv1.Node](b.store.Snapshot(), nodes[0].Meta.Key); n.Member != "m3" || len(b.council.anew) != 1 {
		t.Errorf("a server that lost its state has %q, anew %v", n.Member, b.council.anew)
	}
}

// TestAnIDIsNotEnough: a key whose hash begins like another's can be found with much work.
func TestAnIDIsNotEnough(t *testing.T) {
	b := newBench(t)
	_, request, err := identity.Request()
	check(t, err)
	first, err := b.joinWith(request, b.token("node", 0), "second", "10.0.0.2")
	check(t, err)
	check(t, b.store.Update(t.Context(), func(tx *store.Tx) error {
		return store.Modify(tx, first.Node.Meta.Key, func(o *gantryv1.Node) error { o.JoinKey[len(o.JoinKey)-1] ^= 1; return nil })
	}))
	if _, err := b.joinWith(request, b.token("node", 0), "second", "10.0.0.2"); !fault.Is(err, fault.Conflict) {
		t.Errorf("another key with the same ID: %v", err)
	}
}
