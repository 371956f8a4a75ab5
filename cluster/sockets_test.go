package cluster

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPromptSockets: both ends of a connection to the port get the limits, once they are there; others do not.
func TestPromptSockets(t *testing.T) {
	peer, other := listen(t), listen(t)
	port := peer.Addr().(*net.TCPAddr).Port
	known := promptSockets(port, map[string]bool{})
	dialed, accepted := connect(t, peer)
	foreign, _ := connect(t, other)
	again := promptSockets(port, known)
	if len(again) < len(known)+4 {
		t.Errorf("%d sockets are known after 4 more, and %d before", len(again), len(known))
	}
	for name, conn := range map[string]net.Conn{"dialed": dialed, "accepted": accepted} {
		for option, want := range map[int]int{unix.TCP_USER_TIMEOUT: 5000, unix.TCP_KEEPIDLE: 2, unix.TCP_KEEPINTVL: 1} {
			if got := tcpOption(t, conn, option); got != want {
				t.Errorf("%s: option %d is %d, want %d", name, option, got, want)
			}
		}
	}
	if got := tcpOption(t, foreign, unix.TCP_USER_TIMEOUT); got != 0 {
		t.Errorf("a connection elsewhere has the limit %d", got)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func connect(t *testing.T, l net.Listener) (dialed, accepted net.Conn) {
	t.Helper()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = dialed.Close(), accepted.Close() })
	return dialed, accepted
}

func tcpOption(t *testing.T, c net.Conn, option int) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	value := -1
	if err := raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return value
}
