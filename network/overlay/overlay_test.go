package overlay

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// alone gives the test a thread in network and mount namespaces of its own.
func alone(t *testing.T) *netlink.Handle {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	must(t, unix.Unshare(unix.CLONE_NEWNET|unix.CLONE_NEWNS))
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	h, err := netlink.NewHandle()
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

// TestEnginesUnderstandTheSame configures WireGuard in this process in our own way, and in the way in which the kernel's is
// configured, and compares what it says of itself.
func TestEnginesUnderstandTheSame(t *testing.T) {
	links := alone(t)
	must(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, "")) // /var/run leads there
	private, err := wgtypes.GeneratePrivateKey()
	must(t, err)
	var peers []wgtypes.Key
	for range 3 {
		k, err := wgtypes.GeneratePrivateKey()
		must(t, err)
		peers = append(peers, k.PublicKey())
	}
	said := map[string]string{}
	for _, name := range []string{"own", "kernel"} {
		e, err := openProcess(links, Options{Device: name, MTU: 1420, Logger: slog.New(slog.DiscardHandler)})
		must(t, err)
		p := e.(*process)
		if name == "kernel" {
			e = throughSocket(t, p)
		}
		exercise(t, e, private, peers)
		text, err := p.device.IpcGet()
		must(t, err)
		parts := strings.Split(text, "public_key=") // peers come in any order
		slices.Sort(parts[1:])
		said[name] = strings.Join(parts, "public_key=")
		p.close()
	}
	if said["own"] != said["kernel"] || !strings.Contains(said["own"], "allowed_ip=10.64.2.0/24") {
		t.Errorf("configured by us:\n%s\nas the kernel is:\n%s", said["own"], said["kernel"])
	}
}

// throughSocket is the engine of kernel devices, which finds the device of the process by its socket.
func throughSocket(t *testing.T, p *process) engine {
	t.Helper()
	must(t, os.MkdirAll("/var/run/wireguard", 0o700))
	l, err := net.Listen("unix", "/var/run/wireguard/kernel.sock")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.device.IpcHandle(c)
		}
	}()
	e, err := openKernel("kernel")
	must(t, err)
	t.Cleanup(e.close)
	return e
}

// exercise does what a wireGuard does with its engine.
func exercise(t *testing.T, e engine, private wgtypes.Key, peers []wgtypes.Key) {
	t.Helper()
	w := &wireGuard{o: Options{Port: 7453}, private: private, engine: silent{e}}
	must(t, w.identify())
	for i, key := range peers {
		n := byte(i + 1)
		p := Peer{Address: netip.AddrFrom4([4]byte{192, 0, 2, n}), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, n, 0}), 24), Key: key.String()}
		if i == 1 {
			p.Address, p.Subnet6 = netip.MustParseAddr("2001:db8::2"), Subnet6("c", p.Subnet)
		}
		must(t, w.put(nil, p))
		must(t, w.put(nil, p))
		if w.met(p) {
			t.Error("a peer that never answered was met")
		}
	}
	must(t, w.retain(nil, []Peer{{Key: peers[0].String()}, {Key: peers[1].String()}}))
	must(t, w.drop(nil, Peer{Key: peers[2].String()}))
	known, err := e.peers()
	must(t, err)
	if len(known) != 2 {
		t.Errorf("peers: %v", known)
	}
}

// silent leaves keepalives out: they would send.
type silent struct{ engine }

func (s silent) configure(c wgtypes.Config) error {
	for i := range c.Peers {
		none := time.Duration(0)
		if c.Peers[i].PersistentKeepaliveInterval != nil {
			c.Peers[i].PersistentKeepaliveInterval = &none
		}
	}
	if p, ok := s.engine.(*process); ok {
		return p.device.IpcSet(encode(c))
	}
	return s.engine.configure(c)
}

func TestIPv6RangesFollowFromTheCluster(t *testing.T) {
	a, b := Subnet6("one", netip.MustParsePrefix("10.64.1.0/24")), Subnet6("one", netip.MustParsePrefix("10.64.2.0/24"))
	if a.Overlaps(b) || !Range6("one").Contains(a.Addr()) || !Range6("one").Contains(b.Addr()) || Range6("one").Overlaps(Range6("two")) {
		t.Errorf("%s and %s of %s; another cluster has %s", a, b, Range6("one"), Range6("two"))
	}
	gateway := Gateway6(a, netip.MustParsePrefix("10.64.1.0/24"))
	if !a.Contains(gateway) || !gateway.IsPrivate() {
		t.Errorf("the gateway is %s", gateway)
	}
}

func TestKeyFileIsWrittenOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "deep", "key")
	a, err := PublicKey(file)
	must(t, err)
	if b, err := PublicKey(file); err != nil || a != b {
		t.Errorf("%q, then %q, %v", a, b, err)
	}
	must(t, os.Remove(file))
	must(t, os.Mkdir(file, 0o700))
	if _, err := PublicKey(file); err == nil {
		t.Error("a key that cannot be read is replaced")
	}
}
