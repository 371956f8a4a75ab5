package engine

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/userns"
)

// sample is what a rate is computed from.
type sample struct {
	at    time.Time
	usage uint64
}

// unlimited is above what version 1 says for "no limit".
const unlimited = 1 << 60

// Stats measures a running container. CPUPercent is since the call before; since the start in the first one.
func (e *Engine) Stats(_ context.Context, id string) (*gantryv1.InstanceStats, error) {
	c, err := e.container(id)
	if err != nil {
		return nil, err
	}
	r, err := c.running()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s := &gantryv1.InstanceStats{Instance: id, Name: c.Name, Time: timestamppb.New(now)}
	if e.cgroup.unified {
		e.cgroup.statsV2(id, s)
	} else {
		e.cgroup.statsV1(id, s)
	}
	if s.MemoryLimit == 0 || s.MemoryLimit > unlimited {
		s.MemoryLimit = machineMemory()
	}
	if !c.NetworkHost {
		s.NetworkRx, s.NetworkTx = networkBytes(r.pid)
	}
	s.CpuPercent = c.cpuPercent(now, s.CpuUsage)
	return s, nil
}

func (c *container) cpuPercent(now time.Time, usage uint64) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.stats
	c.stats = sample{now, usage}
	if last.at.Before(c.state.StartedAt) || usage < last.usage {
		last = sample{at: c.state.StartedAt}
	}
	elapsed := now.Sub(last.at)
	if elapsed <= 0 {
		return 0
	}
	return float64(usage-last.usage) / float64(elapsed) * 100
}

func (g cgroups) statsV1(id string, s *gantryv1.InstanceStats) {
	s.CpuUsage = readNumber(g.file("cpuacct", id, "cpuacct.usage"))
	used, cache := readNumber(g.file("memory", id, "memory.usage_in_bytes")), readKeyed(g.file("memory", id, "memory.stat"), "total_inactive_file")
	s.Memory = used - min(cache, used)
	s.MemoryLimit = readNumber(g.file("memory", id, "memory.limit_in_bytes"))
	s.Pids = readNumber(g.file("pids", id, "pids.current"))
	b, err := os.ReadFile(g.file("blkio", id, "blkio.throttle.io_service_bytes"))
	if err != nil {
		return // no block devices are counted on this machine
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line) // "8:0 Read 4096"
		if len(f) != 3 {
			continue
		}
		n, _ := strconv.ParseUint(f[2], 10, 64)
		switch f[1] {
		case "Read":
			s.BlockRead += n
		case "Write":
			s.BlockWrite += n
		}
	}
}

func (g cgroups) statsV2(id string, s *gantryv1.InstanceStats) {
	s.CpuUsage = readKeyed(g.file("", id, "cpu.stat"), "usage_usec") * 1000
	used, cache := readNumber(g.file("", id, "memory.current")), readKeyed(g.file("", id, "memory.stat"), "inactive_file")
	s.Memory = used - min(cache, used)
	s.MemoryLimit = readNumber(g.file("", id, "memory.max"))
	s.Pids = readNumber(g.file("", id, "pids.current"))
	b, err := os.ReadFile(g.file("", id, "io.stat"))
	if err != nil {
		return
	}
	for field := range strings.FieldsSeq(string(b)) { // "8:0 rbytes=4096 wbytes=0 …"
		key, value, _ := strings.Cut(field, "=")
		n, _ := strconv.ParseUint(value, 10, 64)
		switch key {
		case "rbytes":
			s.BlockRead += n
		case "wbytes":
			s.BlockWrite += n
		}
	}
}

func machineMemory() uint64 {
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

// networkBytes sums up what went through the interfaces of a process's network namespace, loopback left out.
func networkBytes(pid uint32) (rx, tx uint64) {
	b, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "net/dev"))
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

// Top lists the processes of a running container, with IDs as the host sees them.
func (e *Engine) Top(_ context.Context, id string) (*gantryv1.TopResponse, error) {
	c, err := e.container(id)
	if err != nil {
		return nil, err
	}
	if _, err := c.running(); err != nil {
		return nil, err
	}
	out := &gantryv1.TopResponse{Titles: []string{"UID", "PID", "PPID", "STATE", "TIME", "RSS", "COMMAND"}}
	for _, pid := range e.cgroup.pids(id) {
		if row := processRow(pid, c.IDBase); row != nil {
			out.Processes = append(out.Processes, &gantryv1.StringList{Values: row})
		}
	}
	return out, nil
}

// clockTicks is how many units a second the kernel counts processor time in, on every architecture Go runs on.
const clockTicks = 100

// processRow describes one process; nil if it has ended meanwhile.
func processRow(pid int, base uint32) []string {
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
				return itoa(uint32(uid) - base)
			}
			return strings.Fields(rest)[0]
		}
	}
	return "?"
}
