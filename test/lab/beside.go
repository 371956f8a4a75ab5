package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Beside makes a place for another daemon on the same machine: folders and a network namespace of its own, with an address on the
// lab's network. Everything else is the machine's: mounts, processes, control groups, host name, IPC. What is started and run on
// the Node that it returns is there; it ends with the machine, and what harms or cuts off machines is not for it.
func (n *Node) Beside(t testing.TB) *Node {
	t.Helper()
	dir := filepath.Join(n.dir, "b")
	b := &Node{lab: n.lab, index: n.index, name: n.name, addr: fmt.Sprintf("198.18.%d.%d", n.lab.subnet, 100+n.index),
		dir: dir, root: filepath.Join(dir, "root"), holder: n.holder, init: n.init}
	b.ill.Store(ended)
	must(t, os.MkdirAll(b.root, 0o711))
	must(t, os.MkdirAll(b.run(), 0o755))
	netns := filepath.Join(dir, "net")
	must(t, os.WriteFile(netns, nil, 0o600))
	n.Exec(t, "unshare", "--net="+netns, "true")
	link := fmt.Sprintf("%sb%d", n.lab.name, n.index)
	run(t, time.Minute, "ip", "link", "add", link, "type", "veth", "peer", "name", "beside", "netns", strconv.Itoa(n.init))
	run(t, time.Minute, "ip", "link", "set", link, "master", n.lab.name, "up")
	n.Exec(t, "ip", "link", "set", "beside", "netns", netns)
	b.netns = netns
	b.Exec(t, "ip", "link", "set", "lo", "up")
	b.Exec(t, "ip", "link", "set", "beside", "name", "eth0")
	b.Exec(t, "ip", "addr", "add", b.addr+"/24", "dev", "eth0")
	b.Exec(t, "ip", "link", "set", "eth0", "up")
	b.Exec(t, "ip", "route", "add", "default", "via", n.lab.gateway())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s, end of the other daemon's log:\n%s", n.name, tail(b.DaemonLog(), 60))
		}
	})
	return b
}
