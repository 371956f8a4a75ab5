// Package holder tells which process listens on a port of this machine.
package holder

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Of names the process that listens on a port of a protocol, "tcp" or "udp": "nginx (process 812)", or nothing when /proc does
// not tell.
func Of(proto string, port uint16) string {
	inodes := map[string]bool{}
	for _, family := range []string{"", "6"} {
		listeners("/proc/thread-self/net/"+proto+family, proto, port, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(link, "socket:[") || !inodes[strings.TrimSuffix(link[8:], "]")] {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		name, _ := os.ReadFile(process + "/comm")
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), filepath.Base(process))
	}
	return ""
}

// listeners collects the inodes of sockets bound to a port from one of the kernel's socket lists.
func listeners(list, proto string, port uint16, inodes map[string]bool) {
	f, err := os.Open(list)
	if err != nil {
		return
	}
	defer f.Close()
	const listening = "0A"
	suffix := fmt.Sprintf(":%04X", port)
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Fields(s.Text())
		if len(field) > 9 && strings.HasSuffix(field[1], suffix) && (proto == "udp" || field[3] == listening) {
			inodes[field[9]] = true
		}
	}
}
