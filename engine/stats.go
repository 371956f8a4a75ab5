package engine

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine/procinfo"
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
		s.MemoryLimit = procinfo.MachineMemory()
	}
	if !c.NetworkHost {
		s.NetworkRx, s.NetworkTx = procinfo.NetworkBytes(r.pid)
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

// Top lists the processes of a running container, with IDs as the host sees them.
func (e *Engine) Top(_ context.Context, id string) (*gantryv1.TopResponse, error) {
	c, err := e.container(id)
	if err != nil {
		return nil, err
	}
	if _, err := c.running(); err != nil {
		return nil, err
	}
	out := &gantryv1.TopResponse{Titles: procinfo.Titles()}
	for _, pid := range e.cgroup.pids(id) {
		if row := procinfo.Row(pid, c.IDBase); row != nil {
			out.Processes = append(out.Processes, &gantryv1.StringList{Values: row})
		}
	}
	return out, nil
}
