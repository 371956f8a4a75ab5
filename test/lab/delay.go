package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// relay stands in a machine's link and hands every frame on after a delay. The kernel's netem would do it, where it is.
//
//	eth0 = NAME   relay   NAMEp = NAMEd — bridge
type relay struct {
	stop context.CancelFunc
	done sync.WaitGroup
}

// Delay holds every frame from and to the machine for that long, each way: a round trip grows by twice as much. 0 ends it.
func (n *Node) Delay(t testing.TB, each time.Duration) {
	t.Helper()
	if n.relay != nil {
		n.relay.stop()
		n.relay.done.Wait()
		n.relay = nil
		run(t, time.Minute, "ip", "link", "del", n.relayPort())
		run(t, time.Minute, "ip", "link", "set", n.name, "master", n.lab.name)
	}
	if each <= 0 {
		return
	}
	inner := n.name + "p"
	run(t, time.Minute, "ip", "link", "set", n.name, "nomaster")
	run(t, time.Minute, "ip", "link", "add", n.relayPort(), "type", "veth", "peer", "name", inner)
	run(t, time.Minute, "ip", "link", "set", inner, "up")
	run(t, time.Minute, "ip", "link", "set", n.relayPort(), "master", n.lab.name, "up")
	// A frame must be whole when it is read: with its checksum, and no larger than the link takes.
	must(t, wholeFrames(n.relayPort()))
	must(t, inNetwork(n.init, func() error { return wholeFrames("eth0") }))
	r, err := startRelay(n.name, inner, each)
	must(t, err)
	n.relay = r
}

// relayPort is the bridge's port while a relay stands in the link.
func (n *Node) relayPort() string { return n.name + "d" }

func startRelay(a, b string, delay time.Duration) (*relay, error) {
	at, err := openFrames(a)
	if err != nil {
		return nil, err
	}
	to, err := openFrames(b)
	if err != nil {
		return nil, errors.Join(err, unix.Close(at))
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &relay{stop: stop}
	r.pass(ctx, at, to, delay)
	r.pass(ctx, to, at, delay)
	context.AfterFunc(ctx, func() {
		r.done.Wait()
		_ = unix.Close(at)
		_ = unix.Close(to)
	})
	return r, nil
}

// held is a frame and when it goes on.
type held struct {
	frame []byte
	due   time.Time
}

// pass hands frames on in one direction. A full queue loses frames, as a router's does.
func (r *relay) pass(ctx context.Context, from, to int, delay time.Duration) {
	queue := make(chan held, 1<<14)
	r.done.Go(func() {
		defer close(queue)
		frame := make([]byte, 1<<16)
		for ctx.Err() == nil {
			size, err := unix.Read(from, frame)
			if err != nil || size <= 0 {
				continue // the read's own time limit, or the link is down for a moment
			}
			select {
			case queue <- held{append([]byte(nil), frame[:size]...), time.Now().Add(delay)}:
			default:
			}
		}
	})
	r.done.Go(func() {
		for next := range queue {
			time.Sleep(time.Until(next.due))
			_, _ = unix.Write(to, next.frame)
		}
	})
}

// openFrames opens a socket that reads what arrives on a device of the host and writes frames to it.
func openFrames(device string) (int, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return 0, err
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("lab: packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: dev.Index}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return 0, fmt.Errorf("lab: packet socket on %s: %w", device, err)
	}
	return fd, nil
}

// wholeFrames makes the kernel finish every frame before it gives it to the device: ethtool -K DEVICE tx off gso off tso off.
func wholeFrames(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, command := range []uint32{unix.ETHTOOL_STXCSUM, unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO} {
		value := struct{ command, data uint32 }{command: command}
		request := struct {
			name [unix.IFNAMSIZ]byte
			data *struct{ command, data uint32 }
			_    [16]byte
		}{data: &value}
		copy(request.name[:unix.IFNAMSIZ-1], device)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("lab: offloads of %s: %w", device, errno)
		}
	}
	return nil
}

// InNetwork runs fn in the machine's network, on the goroutine's own thread: sockets that fn opens stay there.
func (n *Node) InNetwork(fn func() error) error { return inNetwork(n.init, fn) }

// inNetwork runs fn in the network namespace of a process and comes back. The thread must not end: children die with it.
func inNetwork(pid int, fn func() error) error {
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(own)
	other, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(other)
	if err := unix.Setns(other, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = fn()
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked: nothing else may run on it
	}
	runtime.UnlockOSThread()
	return err
}
