package daemon

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newMachine founds a cluster in the root.
func newMachine(t *testing.T, c Config) *machine {
	t.Helper()
	m := &machine{root: c.Root, known: map[string]*gantryv1.Node{}, changed: make(chan struct{})}
	c.NodeRange, c.VirtualIPs = netip.MustParsePrefix("10.192.0.0/11"), netip.MustParsePrefix("10.224.0.0/16")
	c.Subnet = netip.MustParsePrefix("10.192.0.0/22")
	check(t, m.found(c))
	return m
}

func TestAMachineKnowsItselfAgain(t *testing.T) {
	c := Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450}
	m := newMachine(t, c)
	again := &machine{root: c.Root, known: map[string]*gantryv1.Node{}, changed: make(chan struct{})}
	check(t, again.load())
	if again.Node().Meta.Key != m.Node().Meta.Key || again.keeper.Node() != m.Node().Meta.Key || again.Node().ApiAddress != "10.0.0.1:7450" {
		t.Errorf("%v became %v", m.Node(), again.Node())
	}
	if err := again.settle(Config{Root: c.Root}); !fault.Is(err, fault.Invalid) {
		t.Errorf("started without the address that others know: %v", err)
	}
	for name, spoil := range map[string]func(string) error{
		recordFile: func(p string) error { return os.WriteFile(p, []byte("{"), 0o600) },
		filepath.Join(identityDir, "machine.pem"): os.Remove,
	} {
		check(t, spoil(filepath.Join(c.Root, name)))
		if err := again.load(); !fault.Is(err, fault.Corrupt) || fault.HintOf(err) == "" {
			t.Errorf("%s is spoilt: %v", name, err)
		}
		check(t, again.save(m.Record()))
	}
}

// TestANewAddressIsTold: the record has it from the start, so only what the cluster thinks shows that it is news.
func TestANewAddressIsTold(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450})
	old := m.Record().Node
	check(t, m.update(func(r *gantryv1.MachineRecord) { r.Node.Address = "10.0.0.9" }))
	changed := m.Changed()
	check(t, m.heard(&gantryv1.NodeUpdate{Full: true, Node: old, Nodes: []*gantryv1.Node{old}}))
	select {
	case <-changed:
	default:
		t.Error("nobody looks whether the cluster knows the address")
	}
	if m.Node().Address != "10.0.0.9" || m.heardOf().Address != "10.0.0.1" {
		t.Errorf("own %s, told %s", m.Node().Address, m.heardOf().Address)
	}
	m.Record().Node.Address = "changed by a reader"
	if m.Node().Address != "10.0.0.9" {
		t.Error("a reader of the record has changed it")
	}
}

// TestNoChangeOfTheRecordIsLost has what the leader tells of a machine come while the machine notes the member that it was given.
func TestNoChangeOfTheRecordIsLost(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450})
	own := m.Node()
	var wg sync.WaitGroup
	for i := range 20 {
		told := proto.Clone(own).(*gantryv1.Node)
		told.Member = fmt.Sprint("told ", i)
		each := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		wg.Go(func() { each(m.heard(&gantryv1.NodeUpdate{Node: told})) })
		wg.Go(func() {
			each(m.update(func(r *gantryv1.MachineRecord) { r.Member, r.InitialCluster = fmt.Sprint(i), []string{fmt.Sprint(i)} }))
		})
		wg.Wait()
		if r := m.Record(); r.Member != fmt.Sprint(i) || len(r.InitialCluster) != 1 || r.Node.Member != told.Member {
			t.Fatalf("after round %d the machine has member %q, starts with %q and was told %q", i, r.Member, r.InitialCluster, r.Node.Member)
		}
	}
}
