// Package procinfo reads from /proc what is told of a container's processes. All functions are safe in parallel; a process
// that has ended meanwhile is no error.
package procinfo

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gantryd/gantry/engine/userns"
)

// MachineMemory is how much the machine has, in bytes; 0 if it cannot be read.
func MachineMemory() uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b)) // "MemTotal: 123 kB"
	if len(f) < 2 {
		return 0
	}
	kb, _ := strconv.ParseUint(f[1], 10, 64)
	return kb << 10
}

// NetworkBytes sums up what went through the interfaces of a process's network namespace, loopback left out.
func NetworkBytes(pid uint32) (rx, tx uint64) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.FormatUint(uint64(pid), 10), "net/dev"))
	if err != nil {
		return 0, 0
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		name, counters, ok := strings.Cut(s.Text(), ":")
		f := strings.Fields(counters)
		if !ok || strings.TrimSpace(name) == "lo" || len(f) < 9 {
			continue
		}
		r, _ := strconv.ParseUint(f[0], 10, 64)
		t, _ := strconv.ParseUint(f[8], 10, 64)
		rx, tx = rx+r, tx+t
	}
	return rx, tx
}

// clockTicks is how many units a second the kernel counts processor time in, on every architecture Go runs on.
const clockTicks = 100

// Titles are those of a Row's columns.
func Titles() []string { return []string{"UID", "PID", "PPID", "STATE", "TIME", "RSS", "COMMAND"} }

// Row describes one process of a container whose root has the ID base; nil if it has ended meanwhile.
func Row(pid int, base uint32) []string {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return nil
	}
	// The name in parentheses may itself have spaces and parentheses.
	name, rest := string(stat[bytes.IndexByte(stat, '(')+1:bytes.LastIndexByte(stat, ')')]), stat[bytes.LastIndexByte(stat, ')')+1:]
	f := strings.Fields(string(rest))
	if len(f) < 22 {
		return nil
	}
	user, _ := strconv.ParseUint(f[11], 10, 64)
	system, _ := strconv.ParseUint(f[12], 10, 64)
	pages, _ := strconv.ParseUint(f[21], 10, 64)
	busy := time.Duration(user+system) * time.Second / clockTicks
	command := "[" + name + "]"
	if b, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(b) > 0 {
		command = strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
	}
	return []string{
		processUID(dir, base), strconv.Itoa(pid), f[1], f[0], busy.Round(10 * time.Millisecond).String(),
		strconv.FormatUint(pages*uint64(os.Getpagesize())>>10, 10) + "K", command,
	}
}

// processUID is the user of a process as its container has it.
func processUID(dir string, base uint32) string {
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return "?"
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			uid, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 32)
			if err == nil && uint32(uid)-base < userns.Size {
				return strconv.FormatUint(uid-uint64(base), 10)
			}
			return strings.Fields(rest)[0]
		}
	}
	return "?"
}
