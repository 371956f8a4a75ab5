package network

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// publishWeb publishes ports of a service "web" that a and b serve.
func (l *lab) publishWeb(ports []*gantryv1.PortPublish, members ...*container) []*gantryv1.PortPublish {
	l.t.Helper()
	ports, err := l.Publish(l.t.Context(), "prod/shop/web", ports)
	must(l.t, err)
	web := service("prod", "web", "10.96.0.1", []string{"front"}, members...)
	web.Ports = ports
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)}, web)
	return ports
}

func TestPublishedPortKeepsTheClientsAddress(t *testing.T) {
	l := newLab(t)
	remote, a, b, neighbour := l.remote(), l.container("a"), l.container("b"), l.container("neighbour")
	a.serve(80)
	b.serve(80)
	l.publishWeb([]*gantryv1.PortPublish{tcpPort(8080, 80)}, a, b)
	hits := map[string]int{}
	for range 4 {
		who, from, err := remote.ask("192.0.2.1:8080")
		must(t, err)
		if from != "192.0.2.2" {
			t.Errorf("the server sees %s, want 192.0.2.2", from)
		}
		hits[who]++
	}
	if hits["a"] != 2 || hits["b"] != 2 {
		t.Errorf("4 connections went to %v", hits)
	}
	for _, to := range []string{"127.0.0.1:8080", "192.0.2.1:8080", "[::1]:8080", l.Gateway().String() + ":8080"} {
		if _, _, err := askHost(to); err != nil {
			t.Errorf("from the host at %s: %v", to, err)
		}
	}
	for _, c := range []*container{neighbour, a} { // published is public, for itself too
		for range 2 {
			if _, _, err := c.ask("192.0.2.1:8080"); err != nil {
				t.Errorf("%s at the host's address: %v", c.id, err)
			}
		}
	}
	l.apply(nil)
	remote.cannotReach("192.0.2.1:80")
	if _, _, err := askHost("127.0.0.1:8080"); err == nil {
		t.Error("a port without instances answers")
	}
}

func TestPortOfOneHostAddress(t *testing.T) {
	l := newLab(t)
	remote, a := l.remote(), l.container("a")
	a.serve(80)
	l.publishWeb([]*gantryv1.PortPublish{{HostIp: "127.0.0.1", HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		{HostIp: "192.0.2.1", HostPort: 8081, ContainerPort: 80, Protocol: "tcp"}}, a)
	if _, _, err := askHost("127.0.0.1:8080"); err != nil {
		t.Error(err)
	}
	remote.cannotReach("192.0.2.1:8080")
	if _, _, err := remote.ask("192.0.2.1:8081"); err != nil {
		t.Error(err)
	}
	if _, _, err := askHost("127.0.0.1:8081"); err == nil {
		t.Error("127.0.0.1 answers for a port of 192.0.2.1")
	}
}

func TestPublishedDatagrams(t *testing.T) {
	l := newLab(t)
	remote, a := l.remote(), l.container("a")
	a.serveUDP(53)
	early := remote.dialUDP("192.0.2.1:5353")
	ports := []*gantryv1.PortPublish{{HostPort: 5353, ContainerPort: 53, Protocol: "udp"}}
	_, err := l.Publish(t.Context(), "prod/shop/web", ports)
	must(t, err)
	l.apply(nil)
	_, err = early.Write([]byte("too early, and remembered by the kernel as not translated"))
	must(t, err)
	l.publishWeb(ports, a)
	if who, from, err := askUDP(early); who != "a" || from != "192.0.2.2" {
		t.Errorf("remote: %q from %q, %v", who, from, err)
	}
	for _, addr := range []string{"127.0.0.1:5353", "[::1]:5353"} {
		conn, err := net.Dial("udp", addr)
		must(t, err)
		defer conn.Close()
		if who, _, err := askUDP(conn); who != "a" {
			t.Errorf("%s: %q, %v", addr, who, err)
		}
	}
}

func TestTakenPortNamesWhoHasIt(t *testing.T) {
	l := newLab(t)
	ln, err := net.Listen("tcp", ":8090")
	must(t, err)
	defer ln.Close()
	_, err = l.Publish(t.Context(), "web", []*gantryv1.PortPublish{tcpPort(8091, 80), tcpPort(8090, 80)})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) || fault.HintOf(err) == "" {
		t.Errorf("a process has it: %v, hint %q", err, fault.HintOf(err))
	}
	if free, err := net.Listen("tcp", ":8091"); err != nil {
		t.Errorf("the first port stays taken after the second failed: %v", err)
	} else {
		free.Close()
	}
	_, err = l.Publish(t.Context(), "prod/shop/web", []*gantryv1.PortPublish{tcpPort(8092, 80)})
	must(t, err)
	_, err = l.Publish(t.Context(), "prod/mail/web", []*gantryv1.PortPublish{tcpPort(8092, 80)})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "shop/web already") {
		t.Errorf("another service has it: %v", err)
	}
	l.Unpublish("prod/shop/web")
	if _, err = l.Publish(t.Context(), "prod/mail/web", []*gantryv1.PortPublish{tcpPort(8092, 80)}); err != nil {
		t.Errorf("freed: %v", err)
	}
	for _, p := range []*gantryv1.PortPublish{{HostIp: "203.0.113.9", HostPort: 1, ContainerPort: 80}, {HostIp: "x", ContainerPort: 80},
		{HostPort: 70000, ContainerPort: 80}, {HostPort: 80}, tcpPort(8093, 80)} {
		if _, err := l.Publish(t.Context(), "web", []*gantryv1.PortPublish{tcpPort(8093, 80), p}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", p, err)
		}
	}
	if _, err := l.Publish(t.Context(), "web", []*gantryv1.PortPublish{{ContainerPort: 80, Protocol: "sctp"}}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("sctp: %v", err)
	}
}

func TestRandomPortsStay(t *testing.T) {
	l := newLab(t)
	wish := []*gantryv1.PortPublish{tcpPort(0, 80), tcpPort(0, 81)}
	first, err := l.Publish(t.Context(), "web", wish)
	must(t, err)
	if first[0].HostPort == 0 || first[0].HostPort == first[1].HostPort || wish[0].HostPort != 0 {
		t.Fatalf("ports %v for %v", first, wish)
	}
	again, err := l.Publish(t.Context(), "web", wish)
	must(t, err)
	l.restart()
	after, err := l.Publish(t.Context(), "web", wish)
	must(t, err)
	for i := range first {
		if first[i].HostPort != again[i].HostPort || first[i].HostPort != after[i].HostPort {
			t.Errorf("port %d: %d, then %d, after a restart %d", i, first[i].HostPort, again[i].HostPort, after[i].HostPort)
		}
	}
	l.KeepPublished(map[string]bool{})
	if ln, err := net.Listen("tcp", fmt.Sprintf(":%d", first[0].HostPort)); err != nil {
		t.Errorf("not freed: %v", err)
	} else {
		ln.Close()
	}
}

func TestQuestionsGoToTheNameServerThoughSomebodyPublishesPort53(t *testing.T) {
	l := newLab(t)
	a, client := l.container("a"), l.container("client")
	a.serveUDP(53)
	resolver, err := net.ListenPacket("udp", l.Gateway().String()+":53")
	must(t, err)
	defer resolver.Close()
	web := service("prod", "web", "", []string{"front"}, a)
	web.Ports = []*gantryv1.PortPublish{{HostPort: 53, ContainerPort: 53, Protocol: "udp"}}
	l.apply([]*gantryv1.Network{network("prod/shop/front", 1, false)}, web)
	_, err = client.dialUDP(l.Gateway().String() + ":53").Write([]byte("question"))
	must(t, err)
	buf := make([]byte, 20)
	_ = resolver.SetReadDeadline(time.Now().Add(2 * time.Second))
	n, from, err := resolver.ReadFrom(buf)
	must(t, err)
	if string(buf[:n]) != "question" || !strings.HasPrefix(from.String(), client.IPv4.String()+":") {
		t.Errorf("the name server got %q from %s", buf[:n], from)
	}
}

func TestForwardingIsPutBack(t *testing.T) {
	needKernel(t)
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	l := newLab(t)
	if v, _ := readSysctl(forward4); v != "1" {
		t.Errorf("forwarding is %s", v)
	}
	l.restart()
	must(t, l.Network.Cleanup(context.Background()))
	if v, _ := readSysctl(forward4); v != "0" {
		t.Errorf("after Cleanup forwarding is %s", v)
	}
}
