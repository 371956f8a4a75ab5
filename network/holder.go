package network

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// holder names the process that listens on a port, "nginx (process 812)", or nothing when /proc does not tell.
func holder(proto uint8, port uint16) string {
	inodes := map[string]bool{}
	for _, family := range []string{"", "6"} {
		listeners("/proc/thread-self/net/"+protoName(proto)+family, proto, port, inodes)
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
func listeners(list string, proto uint8, port uint16, inodes map[string]bool) {
	f, err := os.Open(list)
	if err != nil {
		return
	}
	defer f.Close()
	const listening = "0A"
	suffix := fmt.Sprintf(":%04X", port)
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Fields(s.Text())
		if len(field) > 9 && strings.HasSuffix(field[1], suffix) && (proto == protoUDP || field[3] == listening) {
			inodes[field[9]] = true
		}
	}
}
