package overlay

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// keepalive between nodes. What matters is its first packet: who learns of a peer talks to it at once, so that the later of
// two that learn of each other, or one that has restarted, makes the keys of both, and nobody waits for WireGuard's timers.
const keepalive = 25 * time.Second

// wireGuard is an encrypted device: the kernel's where there is one, else of this process.
type wireGuard struct {
	o       Options
	links   *netlink.Handle
	private wgtypes.Key
	engine  engine // nil before the device is made
	ready   bool   // the engine has key and port
}

// engine is who encrypts.
type engine interface {
	// configure changes the device; peers that are not named stay.
	configure(wgtypes.Config) error
	// peers lists the keys of those it knows, and whether they have ever answered.
	peers() (map[wgtypes.Key]bool, error)
	// serves reports whether the link is the engine's, and alive.
	serves(netlink.Link) bool
	close()
}

func newWireGuard(links *netlink.Handle, o Options) (*wireGuard, error) {
	private, err := privateKey(o.KeyFile)
	if err != nil {
		return nil, err
	}
	return &wireGuard{o: o, links: links, private: private}, nil
}

// PublicKey is the public half of the key in a file, base64. The first call makes the key.
func PublicKey(file string) (string, error) {
	k, err := privateKey(file)
	if err != nil {
		return "", err
	}
	return k.PublicKey().String(), nil
}

func privateKey(file string) (wgtypes.Key, error) {
	b, err := atomicfile.Read(file)
	if errors.Is(err, os.ErrNotExist) {
		return newPrivateKey(file)
	}
	if err != nil && !fault.Is(err, fault.Corrupt) {
		return wgtypes.Key{}, fault.Wrap(fault.Unavailable, err, "read the overlay's key")
	}
	var k wgtypes.Key
	if err == nil {
		k, err = wgtypes.ParseKey(strings.TrimSpace(string(b)))
	}
	if err != nil {
		return k, fault.Wrap(fault.Invalid, err, "the overlay's key in %s is damaged", file).
			WithHint("remove the file and restart gantryd: a new key is made and told to the other nodes")
	}
	return k, nil
}

// newPrivateKey makes a key and has it on disk before anybody is told of it.
func newPrivateKey(file string) (wgtypes.Key, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return wgtypes.Key{}, fault.Wrap(fault.Internal, err, "make the overlay's key")
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return wgtypes.Key{}, fault.Wrap(fault.Unavailable, err, "keep the overlay's key")
	}
	text := base64.StdEncoding.EncodeToString(k.Bytes()) + "\n"
	if err := atomicfile.Write(file, []byte(text), 0o600); err != nil {
		return wgtypes.Key{}, fault.Wrap(fault.Unavailable, err, "keep the overlay's key")
	}
	return wgtypes.Key(k.Bytes()), nil
}

func (w *wireGuard) ensure() (netlink.Link, bool, error) {
	link, err := w.links.LinkByName(w.o.Device)
	if err == nil {
		if err := ours(link, w.o); err != nil {
			return nil, false, err
		}
		if w.takeOver(link) {
			return link, false, w.up(link)
		}
		if err := w.links.LinkDel(link); err != nil {
			return nil, false, fault.Wrap(fault.Internal, err, "remove the overlay %s, to make it anew", w.o.Device)
		}
	}
	w.close()
	if link, err = w.make(); err != nil {
		return nil, false, err
	}
	return link, true, w.up(link)
}

// takeOver reports whether the device that is there goes on: the kernel's outlives the daemon.
func (w *wireGuard) takeOver(link netlink.Link) bool {
	if w.engine != nil {
		return w.engine.serves(link)
	}
	if link.Type() != "wireguard" {
		return false
	}
	k, err := openKernel(w.o.Device)
	if err != nil {
		return false
	}
	w.engine = k
	return true
}

// make makes the kernel's device, or one of this process where the kernel has none.
func (w *wireGuard) make() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group = w.o.Device, w.o.MTU, w.o.Group
	err := w.links.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	var e engine
	switch {
	case err == nil:
		e, err = openKernel(w.o.Device)
	case errors.Is(err, unix.EOPNOTSUPP):
		w.o.Logger.Info("the kernel has no WireGuard; this process encrypts the overlay, which is slower and rests while it restarts")
		e, err = openProcess(w.links, w.o)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unsupported, err, "make the encrypted overlay %s", w.o.Device).
			WithHint("modprobe wireguard, or modprobe tun and /dev/net/tun for WireGuard in gantryd itself")
	}
	w.engine = e
	link, err := w.links.LinkByName(w.o.Device)
	if err == nil {
		err = w.links.LinkSetGroup(link, int(w.o.Group))
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "find the overlay %s", w.o.Device)
	}
	link.Attrs().Group = w.o.Group
	return link, nil
}

func (w *wireGuard) up(link netlink.Link) error {
	err := w.identify()
	if err == nil && link.Attrs().MTU != w.o.MTU {
		err = w.links.LinkSetMTU(link, w.o.MTU)
	}
	if err == nil {
		err = w.links.LinkSetUp(link)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return fault.New(fault.Conflict, "UDP port %d of the overlay is taken", w.o.Port).
			WithHint("ss -lunp | grep :%d shows by whom; all nodes need the same port free", w.o.Port)
	}
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "switch %s on", w.o.Device)
	}
	return nil
}

// identify gives a new engine key and port. Doing it again would make it forget its sessions.
func (w *wireGuard) identify() error {
	if w.ready {
		return nil
	}
	port := int(w.o.Port)
	err := w.engine.configure(wgtypes.Config{PrivateKey: &w.private, ListenPort: &port})
	w.ready = err == nil
	return err
}

func (w *wireGuard) put(_ netlink.Link, p Peer) error {
	key, err := wgtypes.ParseKey(p.Key)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "its key %q is none of WireGuard", p.Key)
	}
	allowed := []net.IPNet{*ipNet(p.Subnet)}
	if p.Subnet6.IsValid() {
		allowed = append(allowed, *ipNet(p.Subnet6))
	}
	alive := keepalive
	return w.engine.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{{
		PublicKey: key, Endpoint: net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Address, w.o.Port)),
		PersistentKeepaliveInterval: &alive, ReplaceAllowedIPs: true, AllowedIPs: allowed,
	}}})
}

func (w *wireGuard) drop(_ netlink.Link, p Peer) error {
	key, err := wgtypes.ParseKey(p.Key)
	if err != nil {
		return nil // it never was a peer
	}
	return w.engine.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: key, Remove: true, UpdateOnly: true}}})
}

func (w *wireGuard) retain(link netlink.Link, peers []Peer) error {
	keep := map[string]bool{}
	for _, p := range peers {
		keep[p.Key] = true
	}
	known, err := w.engine.peers()
	for key := range known {
		if text := key.String(); !keep[text] {
			err = errors.Join(err, w.drop(link, Peer{Key: text}))
		}
	}
	return err
}

func (w *wireGuard) takes(p Peer) bool {
	_, err := wgtypes.ParseKey(p.Key)
	return err == nil
}

func (w *wireGuard) met(p Peer) bool {
	key, err := wgtypes.ParseKey(p.Key)
	known, err2 := w.engine.peers()
	return err == nil && err2 == nil && known[key]
}

// route needs no gateway: the device knows by the range which peer it belongs to.
func (w *wireGuard) route(r *netlink.Route, _ netip.Addr) {
	if r.Dst.IP.To4() != nil {
		r.Scope = netlink.SCOPE_LINK
	}
}

func (w *wireGuard) close() {
	if w.engine != nil {
		w.engine.close()
		w.engine, w.ready = nil, false
	}
}

// kernel is the kernel's WireGuard.
type kernel struct {
	device string
	client *wgctrl.Client
}

func openKernel(device string) (engine, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	return &kernel{device, c}, nil
}

func (k *kernel) configure(c wgtypes.Config) error { return k.client.ConfigureDevice(k.device, c) }

func (k *kernel) peers() (map[wgtypes.Key]bool, error) {
	d, err := k.client.Device(k.device)
	if err != nil {
		return nil, err
	}
	keys := make(map[wgtypes.Key]bool, len(d.Peers))
	for _, p := range d.Peers {
		keys[p.PublicKey] = !p.LastHandshakeTime.IsZero()
	}
	return keys, nil
}

func (k *kernel) serves(link netlink.Link) bool { return link.Type() == "wireguard" }

func (k *kernel) close() { _ = k.client.Close() }
