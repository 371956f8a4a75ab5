package tracked

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// among keeps the flows that it was asked about.
type among struct {
	ends []netip.Addr
	only bool
	seen *[]Flow
}

func (a among) Match(f Flow) bool {
	*a.seen = append(*a.seen, f)
	return f.Unanswered()
}

func (a among) Ends() ([]netip.Addr, bool) { return a.ends, a.only }

// inNamespace gives the test a network namespace of its own, in which the kernel knows no flow.
func inNamespace(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// track has the kernel know a connection from one address to a virtual one, where another one answers.
func track(t testing.TB, from, to string, port uint16, state uint8) {
	t.Helper()
	source, target := netip.MustParseAddr(from), netip.MustParseAddr(to)
	said, family := netip.MustParseAddr("10.224.0.4"), netlink.InetFamily(unix.AF_INET)
	if source.Is6() {
		said, family = netip.MustParseAddr("fd00::4"), unix.AF_INET6
	}
	flow := &netlink.ConntrackFlow{
		FamilyType: uint8(family), TimeOut: 120, ProtoInfo: &netlink.ProtoInfoTCP{State: state},
		Forward: netlink.IPTuple{SrcIP: source.AsSlice(), DstIP: said.AsSlice(), SrcPort: port, DstPort: 80, Protocol: unix.IPPROTO_TCP},
		Reverse: netlink.IPTuple{SrcIP: target.AsSlice(), DstIP: source.AsSlice(), SrcPort: 80, DstPort: port, Protocol: unix.IPPROTO_TCP},
	}
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, family, flow); err != nil {
		t.Fatal(err)
	}
}

func addresses(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestFlowsAreReadAsTheyAre(t *testing.T) {
	inNamespace(t)
	track(t, "10.0.0.1", "10.0.1.1", 30000, timeWait)
	all, err := List()
	want := Flow{From: netip.MustParseAddr("10.0.0.1"), To: netip.MustParseAddr("10.0.1.1"), Said: netip.MustParseAddr("10.224.0.4"),
		FromPort: 30000, Port: 80, Protocol: unix.IPPROTO_TCP, state: timeWait}
	if err != nil || len(all) != 1 || all[0] != want {
		t.Fatalf("%+v, %v", all, err)
	}
	if f := all[0]; !f.Closed() || f.Broken() || f.Unanswered() || !f.Translated() {
		t.Errorf("%+v", f)
	}
	if got := parse(nil); got != (Flow{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestOnlyFlowsOfTheseEndsAreLookedAt(t *testing.T) {
	inNamespace(t)
	many := addresses("10.0.1.1", "fd00::1:1", "10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6", "10.9.0.7")
	for name, test := range map[string]struct {
		ends    []netip.Addr
		only    bool
		looked  []uint16 // by port
		deleted []uint16
	}{
		"where it goes":       {addresses("10.0.1.1"), true, []uint16{1, 2}, []uint16{1}},
		"where it comes from": {addresses("10.0.0.2"), true, []uint16{3}, []uint16{3}},
		"of IPv6":             {addresses("fd00::1:1"), true, []uint16{4}, []uint16{4}},
		"several":             {addresses("10.0.0.2", "fd00::1:1"), true, []uint16{3, 4}, []uint16{3, 4}},
		"nobody's":            {addresses("10.7.0.1"), true, nil, nil},
		"none":                {nil, true, nil, nil},
		"others too":          {nil, false, []uint16{1, 2, 3}, []uint16{1, 3}},
		"too many to ask for": {many, true, []uint16{1, 2, 3, 4}, []uint16{1, 3, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			track(t, "10.0.0.1", "10.0.1.1", 1, synSent)
			track(t, "10.0.0.1", "10.0.1.1", 2, timeWait)
			track(t, "10.0.0.2", "10.0.1.2", 3, synSent)
			track(t, "fd00::1", "fd00::1:1", 4, synSent)
			if got := ports(t, among{test.ends, test.only, new([]Flow)}); !slices.Equal(got, test.looked) {
				t.Errorf("looked at %v, want %v", got, test.looked)
			}
			left := ports(t, among{many, false, new([]Flow)})
			for _, port := range []uint16{1, 2, 3, 4} {
				if slices.Contains(left, port) == slices.Contains(test.deleted, port) {
					t.Errorf("left is %v, %v was to be deleted", left, test.deleted)
				}
			}
		})
	}
}

// ports has a selection deleted, and lists the ports of the flows that it was asked about.
func ports(t *testing.T, a among) (out []uint16) {
	t.Helper()
	if err := Forget(a); err != nil {
		t.Fatal(err)
	}
	for _, f := range *a.seen {
		out = append(out, f.FromPort)
	}
	slices.Sort(out)
	return out
}

// BenchmarkForget is of a machine that makes 250 connections a second: 30,000 closed ones.
func BenchmarkForget(b *testing.B) {
	for name, a := range map[string]among{"one end": {addresses("10.0.1.2"), true, nil}, "all": {nil, false, nil}} {
		b.Run(name, func(b *testing.B) {
			inNamespace(b)
			for i := range 30000 {
				track(b, "10.0.0.1", "10.0.1.1", uint16(20000+i), timeWait)
			}
			for b.Loop() {
				a.seen = new([]Flow)
				if err := Forget(a); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
