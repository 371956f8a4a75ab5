package cluster

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// etcd means to end a connection to another member on which nothing has come for five seconds. It does not: it gives its
// limits to http.Transport.Dial, which is not used because DialContext is set (client/pkg/v3/transport, 3.6 to 3.8). A
// connection that a partition has cut then lives until the kernel gives up, and what is written to it waits for the kernel's
// next attempt, which comes as long after the heal as the partition has lasted. So the kernel is told here.
const (
	peerSilence = 5 * time.Second // etcd's own limit
	peerIdle    = 2 * time.Second // before the kernel asks whether the other end is there; etcd sends something more often
	peerAsk     = time.Second     // between its questions
	peersLook   = time.Second     // between two looks for new connections
)

// promptPeers has the connections of this process from and to a port end when the other end is silent, until stop.
func promptPeers(port int, stop <-chan struct{}) {
	look := time.NewTicker(peersLook)
	defer look.Stop()
	known := map[string]bool{}
	for {
		known = promptSockets(port, known)
		select {
		case <-look.C:
		case <-stop:
			return
		}
	}
}

// promptSockets looks at the sockets that are not known, and returns those it knows now.
func promptSockets(port int, known map[string]bool) map[string]bool {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return known
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return known
	}
	now := make(map[string]bool, len(known))
	for _, name := range names {
		socket, err := os.Readlink("/proc/self/fd/" + name)
		if err != nil || !strings.HasPrefix(socket, "socket:") {
			continue
		}
		fd, err := strconv.Atoi(name)
		if err == nil && (known[socket] || promptSocket(fd, port) == nil) {
			now[socket] = true
		}
	}
	return now
}

// promptSocket sets the limits of a connection from or to the port. One that is not connected yet is an error.
func promptSocket(fd, port int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) // the number may become another file's meanwhile
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(own) }()
	if protocol, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || protocol != unix.IPPROTO_TCP {
		return err
	}
	if listens, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 1 {
		return err
	}
	local, err := unix.Getsockname(own)
	if err != nil {
		return err
	}
	remote, err := unix.Getpeername(own)
	if err != nil {
		return err
	}
	if portOf(local) != port && portOf(remote) != port {
		return nil
	}
	return errors.Join(
		unix.SetsockoptInt(own, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerSilence.Milliseconds())),
		unix.SetsockoptInt(own, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(peerIdle.Seconds())),
		unix.SetsockoptInt(own, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(peerAsk.Seconds())),
		unix.SetsockoptInt(own, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
	)
}

func portOf(a unix.Sockaddr) int {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}
