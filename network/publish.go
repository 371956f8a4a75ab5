package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/holder"
)

// portTable holds the host ports of this node. Each is reserved by a bound socket, so that no other process can take it
// and a port that is taken already is noticed. The kernel's rules take IPv4 traffic before it gets to the socket; what
// gets there, IPv6 above all, is carried by a proxy.
type portTable struct {
	path   string
	log    *slog.Logger
	routes atomic.Pointer[map[portKey]target]

	mu     sync.Mutex
	owners map[string][]*reservation
	wake   chan struct{}
	fresh  []*reservation // not served yet
}

// reservation is one host port of one owner. Without a socket it is only remembered, from before a restart.
type reservation struct {
	Host      string `json:"host,omitempty"`
	Port      uint16 `json:"port"`
	Proto     uint8  `json:"proto"`
	Container uint32 `json:"container"`
	Random    bool   `json:"random,omitempty"`

	socket io.Closer // *net.TCPListener or *net.UDPConn
	next   atomic.Uint32
}

func openPortTable(path string, log *slog.Logger) (*portTable, error) {
	t := &portTable{path: path, log: log, owners: map[string][]*reservation{}, wake: make(chan struct{}, 1)}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "read the published ports")
	}
	if err := json.Unmarshal(b, &t.owners); err != nil {
		log.Warn("the record of published ports is damaged; random ports will change", "err", err)
		t.owners = map[string][]*reservation{}
	}
	return t, nil
}

// Publish makes the ports of an owner exactly these and returns them with host ports filled in. A random port stays the
// same for as long as the owner publishes the same container port, across restarts too. When one port cannot be had, the
// error says who has it and nothing changes. Traffic flows once Apply lists the ports with a service.
func (n *Network) Publish(_ context.Context, owner string, ports []*gantryv1.PortPublish) ([]*gantryv1.PortPublish, error) {
	return n.ports.publish(owner, ports)
}

// Unpublish frees all ports of an owner.
func (n *Network) Unpublish(owner string) { n.ports.release(func(o string) bool { return o == owner }) }

// KeepPublished frees the ports of all owners but those in keep.
func (n *Network) KeepPublished(keep map[string]bool) {
	n.ports.release(func(o string) bool { return !keep[o] })
}

// claim is the work of one publish call: what the owner had, what it holds now, and what was bound for it.
type claim struct {
	owner            string
	had, held, bound []*reservation
}

func (t *portTable) publish(owner string, ports []*gantryv1.PortPublish) ([]*gantryv1.PortPublish, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &claim{owner: owner, had: slices.Clone(t.owners[owner])}
	out := make([]*gantryv1.PortPublish, 0, len(ports))
	for _, p := range ports {
		r, err := t.hold(c, p)
		if err != nil {
			closeAll(c.bound)
			return nil, err
		}
		filled := proto.Clone(p).(*gantryv1.PortPublish)
		filled.HostPort = uint32(r.Port)
		out = append(out, filled)
	}
	if len(c.had) == 0 && len(c.bound) == 0 {
		return out, nil
	}
	closeAll(c.had)
	t.owners[owner] = c.held
	t.serveSoon(c.bound)
	return out, t.save()
}

// hold finds the reservation of one port, or binds it.
func (t *portTable) hold(c *claim, p *gantryv1.PortPublish) (*reservation, error) {
	if err := checkPort(p); err != nil {
		return nil, err
	}
	want := &reservation{Host: p.HostIp, Port: uint16(p.HostPort), Proto: protoNumber(p.Protocol), Container: p.ContainerPort, Random: p.HostPort == 0}
	i := slices.IndexFunc(c.had, want.same)
	if i >= 0 {
		old := c.had[i]
		if old.socket != nil {
			c.had = slices.Delete(c.had, i, i+1)
			c.held = append(c.held, old)
			return old, nil
		}
		want.Port = old.Port
	}
	err := want.bind()
	if err != nil && want.Random && want.Port != 0 { // the remembered one went to somebody else meanwhile
		want.Port = 0
		err = want.bind()
	}
	if err != nil {
		return nil, t.explain(c, want, err)
	}
	if i >= 0 {
		c.had = slices.Delete(c.had, i, i+1)
	}
	c.held, c.bound = append(c.held, want), append(c.bound, want)
	return want, nil
}

// same reports whether an older reservation answers the same wish.
func (r *reservation) same(old *reservation) bool {
	if r.Host != old.Host || r.Proto != old.Proto || r.Random != old.Random {
		return false
	}
	if r.Random {
		return r.Container == old.Container
	}
	return r.Port == old.Port
}

func checkPort(p *gantryv1.PortPublish) error {
	if p.HostIp != "" {
		if _, err := netip.ParseAddr(p.HostIp); err != nil {
			return fault.New(fault.Invalid, "the host address %q of a published port is not an IP address", p.HostIp)
		}
	}
	switch p.Protocol {
	case "", "tcp", "udp", "TCP", "UDP":
	default:
		return fault.New(fault.Unsupported, "port %d/%s cannot be published: only tcp and udp can", p.ContainerPort, p.Protocol)
	}
	if p.ContainerPort == 0 || p.ContainerPort > 65535 || p.HostPort > 65535 {
		return fault.New(fault.Invalid, "port %d:%d cannot be published: ports go from 1 to 65535", p.HostPort, p.ContainerPort)
	}
	return nil
}

// bind takes the port on the host. The wildcard covers IPv4 and IPv6 in one socket.
func (r *reservation) bind() error {
	host, suffix := r.Host, ""
	if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
		suffix = "4"
	} else if err == nil {
		suffix = "6"
	}
	address := net.JoinHostPort(host, strconv.Itoa(int(r.Port)))
	if r.Proto == protoUDP {
		c, err := net.ListenPacket("udp"+suffix, address)
		if err != nil {
			return err
		}
		r.socket, r.Port = c.(*net.UDPConn), uint16(c.LocalAddr().(*net.UDPAddr).Port)
		return nil
	}
	l, err := net.Listen("tcp"+suffix, address)
	if err != nil {
		return err
	}
	r.socket, r.Port = l.(*net.TCPListener), uint16(l.Addr().(*net.TCPAddr).Port)
	return nil
}

// String is the port as people write it: "127.0.0.1:8080/tcp".
func (r *reservation) String() string {
	s := fmt.Sprintf("%d/%s", r.Port, protoName(r.Proto))
	if r.Host != "" {
		s = r.Host + ":" + s
	}
	return s
}

func protoName(p uint8) string {
	if p == protoUDP {
		return "udp"
	}
	return "tcp"
}

// explain turns a failed bind into what a person can act on.
func (t *portTable) explain(c *claim, r *reservation, err error) error {
	taken := func(o *reservation) bool { return o.socket != nil && o.Port == r.Port && o.Proto == r.Proto }
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fault.New(fault.Invalid, "port %s cannot be published: %s is not an address of this host", r, r.Host).WithHint("ip address")
	case !errors.Is(err, syscall.EADDRINUSE):
		return fault.Wrap(fault.Unavailable, err, "publish port %s", r)
	case slices.ContainsFunc(c.held, taken):
		return fault.New(fault.Invalid, "%s publishes port %s twice", c.owner, r)
	}
	for owner, rs := range t.owners {
		if owner != c.owner && slices.ContainsFunc(rs, taken) {
			who := nameFor(c.owner, owner)
			return fault.New(fault.Conflict, "port %s is published by %s already", r, who).
				WithHint("publish another host port, or stop %s", who)
		}
	}
	if who := holder.Of(protoName(r.Proto), r.Port); who != "" {
		return fault.New(fault.Conflict, "port %s is taken by %s", r, who).WithHint("publish another host port, or stop %s", who)
	}
	return fault.New(fault.Conflict, "port %s is taken by another process", r).WithHint("ss -lnp | grep :%d", r.Port)
}

// nameFor is what an owner calls another one: "app/service", or the name given to run, and the environment if it is not its own.
func nameFor(owner, other string) string {
	env, name, found := strings.Cut(other, "/")
	if !found {
		return other
	}
	name = strings.TrimPrefix(name, "/")
	if !strings.HasPrefix(owner, env+"/") {
		name += " of the environment " + env
	}
	return name
}

func closeAll(rs []*reservation) {
	for _, r := range rs {
		if r.socket != nil {
			r.socket.Close()
		}
	}
}

func (t *portTable) release(gone func(owner string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := false
	for owner, rs := range t.owners {
		if gone(owner) {
			closeAll(rs)
			delete(t.owners, owner)
			changed = true
		}
	}
	if !changed {
		return
	}
	if err := t.save(); err != nil {
		t.log.Warn("the published ports cannot be recorded", "err", err)
	}
}

func (t *portTable) save() error { return writeJSON(t.path, t.owners) }

// close frees the sockets and keeps the record, so that a restart finds the same random ports.
func (t *portTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, rs := range t.owners {
		closeAll(rs)
		for _, r := range rs {
			r.socket = nil
		}
	}
}
