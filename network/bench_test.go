package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/network/addresses"
	"github.com/gantryd/gantry/network/overlay"
)

// BenchmarkAttachReady is the hot path of a container's start: a link from the pool.
func BenchmarkAttachReady(b *testing.B) {
	l := newLab(b, func(o *Options) { o.PoolSize = 8; o.Subnet = netip.MustParsePrefix("10.64.0.0/16") })
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		await(b, "the pool", func() bool { return l.readyCount() > 0 })
		b.StartTimer()
		_, err := l.Attach(b.Context(), fmt.Sprint(i), AttachOptions{})
		must(b, err)
		b.StopTimer()
		must(b, l.Detach(b.Context(), fmt.Sprint(i)))
		b.StartTimer()
	}
}

// BenchmarkAttachNew is what a burst pays that empties the pool.
func BenchmarkAttachNew(b *testing.B) {
	l := newLab(b, func(o *Options) { o.PoolSize = -1; o.Subnet = netip.MustParsePrefix("10.64.0.0/16") })
	for i := 0; b.Loop(); i++ {
		_, err := l.Attach(b.Context(), fmt.Sprint(i), AttachOptions{})
		must(b, err)
		b.StopTimer()
		must(b, l.Detach(b.Context(), fmt.Sprint(i)))
		b.StartTimer()
	}
}

// many is the state of services, five in each app, with so many instances each.
func many(services, instances int) State {
	var s State
	for i := range services {
		key := fmt.Sprintf("prod/app%d", i/5)
		e := &gantryv1.ServiceEndpoints{Service: fmt.Sprintf("%s/s%d", key, i), Environment: "prod", VirtualIp: fmt.Sprintf("10.96.%d.%d", i/250, i%250+1),
			Attachments: []*gantryv1.NetworkAttachment{{Network: key + "/default"}}}
		if i%5 == 0 {
			s.Networks = append(s.Networks, network(key+"/default", uint32(i/5+1), false))
		}
		for j := range instances {
			e.Endpoints = append(e.Endpoints, &gantryv1.Endpoint{Address: addresses.At(10<<24 | 64<<16 | uint32(i*instances+j+2)).String(), Ready: true})
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// flipped is a service whose first instance turns ready, or not.
func flipped(e *gantryv1.ServiceEndpoints) *gantryv1.ServiceEndpoints {
	e = proto.Clone(e).(*gantryv1.ServiceEndpoints)
	e.Endpoints[0].Ready = !e.Endpoints[0].Ready
	return e
}

// BenchmarkChange is what a node with a hundred instances of its own does when something changes, by the number of services
// that it knows, of 20 instances each: one instance turns ready or not; a service comes or goes; the only instance of a
// network moves here or away; the whole table is written anew.
func BenchmarkChange(b *testing.B) {
	here, elsewhere := addresses.At(10<<24|64<<16|3<<8|250).String(), addresses.At(10<<24|200<<16|2).String()
	for _, services := range []int{100, 1000, 5000} {
		l := newLab(b)
		s := many(services, 20)
		for _, e := range s.Endpoints {
			e.Endpoints = slices.DeleteFunc(e.Endpoints, func(ep *gantryv1.Endpoint) bool { return ep.Address == here })
		}
		one := &gantryv1.ServiceEndpoints{Service: "prod/one/s", Environment: "prod", VirtualIp: "10.96.250.1",
			Endpoints:   []*gantryv1.Endpoint{{Address: elsewhere, Ready: true}},
			Attachments: []*gantryv1.NetworkAttachment{{Network: "prod/one/default"}}}
		s.Networks = append(s.Networks, network("prod/one/default", 9999, false))
		must(b, l.Apply(b.Context(), s))
		both := State{Endpoints: append(s.Endpoints[:len(s.Endpoints):len(s.Endpoints)], one), Networks: s.Networks}
		at := func(address string) State {
			e := proto.Clone(one).(*gantryv1.ServiceEndpoints)
			e.Endpoints[0].Address = address
			return State{Endpoints: append(s.Endpoints[:len(s.Endpoints):len(s.Endpoints)], e), Networks: s.Networks}
		}
		run := func(what string, change func(i int) error) {
			b.Run(fmt.Sprintf("%d/%s", services, what), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					must(b, change(i))
				}
			})
		}
		run("none", func(int) error { return l.Apply(b.Context(), s) })
		run("ready", func(int) error {
			s.Endpoints[17] = flipped(s.Endpoints[17])
			return l.Apply(b.Context(), s)
		})
		run("service", func(i int) error { return l.Apply(b.Context(), []State{both, s}[i%2]) })
		run("moved", func(i int) error { return l.Apply(b.Context(), at([]string{here, elsewhere}[i%2])) })
		run("anew", func(int) error { return l.reassert() })
		l.stop()
	}
}

// BenchmarkTraffic compares a virtual with a direct address: one stream, and short connections.
func BenchmarkTraffic(b *testing.B) {
	l := newLab(b)
	a, client := l.container("a"), l.container("client")
	var ln net.Listener
	must(b, do(b, a.ns, func() (err error) {
		ln, err = net.Listen("tcp", ":80")
		return err
	}))
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)}, service("prod", "web", "10.96.0.1", []string{"front"}, a),
		service("prod", "client", "", []string{"front"}, client))
	for name, addr := range map[string]string{"direct": a.IPv4.String() + ":80", "virtual": "10.96.0.1:80"} {
		b.Run("stream/"+name, func(b *testing.B) {
			conn, err := client.dial(addr)
			must(b, err)
			defer conn.Close()
			buf := make([]byte, 1<<20)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				_, err := conn.Write(buf)
				must(b, err)
			}
		})
		b.Run("connect/"+name, func(b *testing.B) {
			must(b, do(b, client.ns, func() error {
				for b.Loop() {
					conn, err := net.DialTimeout("tcp", addr, time.Second)
					if err != nil {
						return err
					}
					_ = conn.(*net.TCPConn).SetLinger(0)
					conn.Close()
				}
				return nil
			}))
		})
	}
}

// plain puts a namespace behind a machine as a container is, without anything of ours: 10.200.N.2, routed through the cable.
func (m *machine) plain(b *testing.B, number, other int) *os.File {
	var ns *os.File
	must(b, onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	}))
	b.Cleanup(func() { ns.Close() })
	route := func(to, via string) error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(to)), Gw: net.ParseIP(via)})
	}
	m.inside(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "plain"
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(ns.Fd())
		return errors.Join(netlink.LinkAdd(veth), address4(veth, fmt.Sprintf("10.200.%d.1/24", number)),
			route(fmt.Sprintf("10.200.%d.0/24", other), fmt.Sprintf("192.0.2.%d", other)))
	})
	must(b, do(b, ns, func() error {
		return errors.Join(onLink("eth0", addAddress(fmt.Sprintf("10.200.%d.2/24", number))), route("0.0.0.0/0", fmt.Sprintf("10.200.%d.1", number)))
	}))
	return ns
}

// BenchmarkBetweenNodes is one stream between machines: by the cable, between namespaces behind them that are merely routed,
// and between containers by each overlay.
func BenchmarkBetweenNodes(b *testing.B) {
	stream := func(b *testing.B, from, to *os.File, addr string) {
		var ln net.Listener
		must(b, do(b, to, func() (err error) {
			ln, err = net.Listen("tcp", addr)
			return err
		}))
		defer ln.Close()
		read := make(chan int64, 1)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				read <- 0
				return
			}
			n, _ := io.Copy(io.Discard, c)
			c.Close()
			read <- n
		}()
		conn, err := dialIn(b, from, addr)
		must(b, err)
		buf := make([]byte, 1<<20)
		b.SetBytes(int64(len(buf)))
		sent := int64(0)
		for b.Loop() {
			_, err := conn.Write(buf)
			must(b, err)
			sent += int64(len(buf))
		}
		conn.Close()
		if got := <-read; got != sent {
			b.Fatalf("%d of %d bytes arrived", got, sent)
		}
	}
	for _, kind := range []string{overlay.VXLAN, overlay.WireGuard} {
		b.Run(kind, func(b *testing.B) {
			l := newLAN(b, 2, func(o *Options) { o.Overlay = kind })
			x, y := l.machines[0].run("x"), l.machines[1].run("y")
			l.apply(front(), service("prod", "x", "", []string{"front"}, x), service("prod", "y", "", []string{"front"}, y))
			b.Run("cable", func(b *testing.B) { stream(b, l.machines[0].ns, l.machines[1].ns, "192.0.2.2:9000") })
			if kind == overlay.VXLAN {
				from, to := l.machines[0].plain(b, 1, 2), l.machines[1].plain(b, 2, 1)
				b.Run("routed", func(b *testing.B) { stream(b, from, to, "10.200.2.2:9000") })
			}
			b.Run("containers", func(b *testing.B) { stream(b, x.ns, y.ns, y.IPv4.String()+":9000") })
		})
	}
}
