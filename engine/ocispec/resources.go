package ocispec

import (
	"runtime"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// minMemory is the least that a container starts with, as in Docker.
const minMemory = 6 << 20

const defaultPeriod = 100_000 // microseconds

// setResources adds limits to what setDevices began.
func setResources(s *specs.Spec, in Input) error {
	r := in.Spec.GetResources()
	if r == nil {
		return nil
	}
	var err error
	if s.Linux.Resources.CPU, err = cpu(r); err != nil {
		return err
	}
	if s.Linux.Resources.Memory, err = memory(r, in.Cgroup); err != nil {
		return err
	}
	if p := r.GetPids(); p != 0 {
		s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &p}
	}
	if w := uint16(r.GetBlkioWeight()); w != 0 {
		s.Linux.Resources.BlockIO = &specs.LinuxBlockIO{Weight: &w}
	}
	return nil
}

func cpu(r *gantryv1.Resources) (*specs.LinuxCPU, error) {
	if max := int64(runtime.NumCPU()) * 1e9; r.GetNanoCpus() > max {
		return nil, fault.New(fault.Invalid, "cpus: %.2f is more than the %d that the machine has",
			float64(r.GetNanoCpus())/1e9, runtime.NumCPU())
	}
	c := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	period, quota := uint64(r.GetCpuPeriod()), r.GetCpuQuota()
	if r.GetNanoCpus() > 0 {
		period, quota = defaultPeriod, r.GetNanoCpus()*defaultPeriod/1e9
	}
	if period != 0 {
		c.Period = &period
	}
	if quota != 0 {
		c.Quota = &quota
	}
	if shares := uint64(r.GetCpuShares()); shares != 0 {
		c.Shares = &shares
	}
	return c, nil
}

func memory(r *gantryv1.Resources, f CgroupFeatures) (*specs.LinuxMemory, error) {
	limit, swap, reservation := r.GetMemory(), r.GetMemorySwap(), r.GetMemoryReservation()
	if limit != 0 && limit < minMemory {
		return nil, fault.New(fault.Invalid, "memory limit of %d bytes is less than the least possible, 6 MiB", limit).
			WithHint("mem_limit: 6m or more")
	}
	if swap > 0 && limit > swap {
		return nil, fault.New(fault.Invalid, "memswap_limit (%d) is less than the memory limit (%d)", swap, limit).
			WithHint("memswap_limit counts memory and swap together")
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = &limit
		if swap == 0 {
			swap = 2 * limit
		}
	}
	if swap != 0 && f.Swap {
		m.Swap = &swap
	}
	if reservation != 0 {
		m.Reservation = &reservation
	}
	if r.GetOomKillDisable() && !f.Unified {
		disable := true
		m.DisableOOMKiller = &disable
	}
	if sw := uint64(r.GetMemorySwappiness()); sw != 0 && !f.Unified {
		m.Swappiness = &sw
	}
	return m, nil
}

func rlimits(ulimits []*gantryv1.Ulimit) ([]specs.POSIXRlimit, error) {
	known := []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
		"rss", "rtprio", "rttime", "sigpending", "stack"}
	var out []specs.POSIXRlimit
	for _, u := range ulimits {
		if !slices.Contains(known, u.GetName()) {
			return nil, fault.New(fault.Invalid, "unknown ulimit %q", u.GetName()).WithHint("one of %s", strings.Join(known, ", "))
		}
		if u.GetHard() >= 0 && u.GetSoft() > u.GetHard() {
			return nil, fault.New(fault.Invalid, "ulimit %s: soft limit %d is above the hard limit %d", u.GetName(), u.GetSoft(), u.GetHard())
		}
		// A negative number means unlimited, which is all bits set.
		out = append(out, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(u.GetName()), Soft: uint64(u.GetSoft()), Hard: uint64(u.GetHard()),
		})
	}
	return out, nil
}
