package compose

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// exact reads a number as it was written: 0.1 is not 0.10000000149.
func exact(f float32) float64 {
	v, _ := strconv.ParseFloat(strconv.FormatFloat(float64(f), 'f', -1, 32), 64)
	return v
}

func nanoCPUs(f float32) int64 { return int64(math.Round(exact(f) * 1e9)) }

func (c *converter) resources(path []string, s *types.ServiceConfig) *gantryv1.Resources {
	r := &gantryv1.Resources{
		NanoCpus: nanoCPUs(s.CPUS), Memory: int64(s.MemLimit), MemoryReservation: int64(s.MemReservation),
		MemorySwap: int64(s.MemSwapLimit), Pids: s.PidsLimit, CpuShares: s.CPUShares, CpusetCpus: s.CPUSet,
		CpuQuota: s.CPUQuota, CpuPeriod: s.CPUPeriod, OomScoreAdj: int32(s.OomScoreAdj), OomKillDisable: s.OomKillDisable,
		MemorySwappiness: int64(s.MemSwappiness),
	}
	if s.BlkioConfig != nil {
		r.BlkioWeight = uint32(s.BlkioConfig.Weight)
	}
	if s.Deploy != nil {
		if l := s.Deploy.Resources.Limits; l != nil {
			override(&r.NanoCpus, nanoCPUs(l.NanoCPUs.Value()))
			override(&r.Memory, int64(l.MemoryBytes))
			override(&r.Pids, l.Pids)
		}
		if l := s.Deploy.Resources.Reservations; l != nil {
			override(&r.NanoCpusReservation, nanoCPUs(l.NanoCPUs.Value()))
			override(&r.MemoryReservation, int64(l.MemoryBytes))
			r.NamedDevices = c.namedDevices(append(slices.Clone(path), "deploy", "resources", "reservations"), l, len(s.Devices) > 0)
		}
	}
	c.checkResources(path, r)
	return r
}

func override(to *int64, v int64) {
	if v != 0 {
		*to = v
	}
}

const minMemory = 6 << 20 // below it runc cannot start a process

func (c *converter) checkResources(path []string, r *gantryv1.Resources) {
	for key, v := range map[string]int64{"cpus": r.NanoCpus, "mem_limit": r.Memory, "mem_reservation": r.MemoryReservation, "cpu_shares": r.CpuShares} {
		if v < 0 {
			c.report.invalid(append(path, key), "remove the line for no limit", "the value is below zero")
		}
	}
	if r.Memory > 0 && r.Memory < minMemory {
		c.report.invalid(append(path, "mem_limit"), "give it at least 6m", "no process starts in %d bytes of memory", r.Memory)
	}
	if r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		c.report.invalid(append(path, "memswap_limit"), "it is memory plus swap: make it at least mem_limit", "the limit is below mem_limit")
	}
}

// restart takes deploy.restart_policy before restart.
func (c *converter) restart(path []string, s *types.ServiceConfig) *gantryv1.RestartPolicy {
	if s.Deploy != nil && s.Deploy.RestartPolicy != nil {
		return c.restartPolicy(path, s.Deploy.RestartPolicy)
	}
	name, count, counted := strings.Cut(s.Restart, ":")
	out := &gantryv1.RestartPolicy{Condition: map[string]gantryv1.RestartPolicy_Condition{
		types.RestartPolicyNo: gantryv1.RestartPolicy_CONDITION_NO, types.RestartPolicyAlways: gantryv1.RestartPolicy_CONDITION_ALWAYS,
		types.RestartPolicyOnFailure:     gantryv1.RestartPolicy_CONDITION_ON_FAILURE,
		types.RestartPolicyUnlessStopped: gantryv1.RestartPolicy_CONDITION_UNLESS_STOPPED,
	}[name]}
	n, err := strconv.ParseUint(count, 10, 31)
	switch {
	case s.Restart == "":
		return nil
	case out.Condition == 0, counted && (err != nil || name != types.RestartPolicyOnFailure):
		c.report.invalid(append(path, "restart"), `use "no", always, on-failure[:TIMES] or unless-stopped`, "there is no restart policy %q", shorten(s.Restart))
		return nil
	}
	out.MaxAttempts = int32(n)
	return out
}

func (c *converter) restartPolicy(path []string, p *types.RestartPolicy) *gantryv1.RestartPolicy {
	out := &gantryv1.RestartPolicy{Delay: optional(p.Delay), Window: optional(p.Window)}
	switch p.Condition {
	case "", "any":
		out.Condition = gantryv1.RestartPolicy_CONDITION_ALWAYS
	case "on-failure":
		out.Condition = gantryv1.RestartPolicy_CONDITION_ON_FAILURE
	case "none":
		out.Condition = gantryv1.RestartPolicy_CONDITION_NO
	default:
		c.report.invalid(append(path, "deploy", "restart_policy", "condition"), "use none, on-failure or any", "there is no condition %q", shorten(p.Condition))
	}
	if p.MaxAttempts != nil {
		out.MaxAttempts = int32(min(*p.MaxAttempts, 1<<30))
	}
	return out
}
