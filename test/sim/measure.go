package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// line is one finished measurement.
type line struct {
	what  string
	value float64
	unit  string
	goal  float64 // at most; 0 for none
	note  string
	must  bool // the program fails when it misses
}

func (l line) met() bool { return l.goal == 0 || l.value <= l.goal }

func table(lines []line) string {
	var b strings.Builder
	b.WriteString("| what | figure | goal | | |\n|---|---|---|---|---|\n")
	for _, l := range lines {
		goal, verdict := "–", ""
		if l.goal > 0 {
			goal, verdict = "at most "+number(l.goal, l.unit), "met"
			if !l.met() {
				verdict = "**missed**"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", l.what, number(l.value, l.unit), goal, verdict, l.note)
	}
	return b.String()
}

func number(v float64, unit string) string {
	digits := 2
	switch {
	case v >= 100:
		digits = 0
	case v >= 10:
		digits = 1
	}
	return strings.TrimSpace(strconv.FormatFloat(v, 'f', digits, 64) + " " + unit)
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory reads a line of /proc/self/status, in MiB: VmRSS for now, VmHWM for the most there was.
func memory(field string) float64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, field+":"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024
		}
	}
	return 0
}

// forgetPeak has VmHWM begin anew, with the memory that earlier rows left given back first.
func forgetPeak() {
	runtime.GC()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o200)
}

// collections is how often Go has collected garbage: meanwhile everything takes longer.
func collections() uint32 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.NumGC
}

// quantile sorts durations.
func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return ms(d[min(len(d)-1, int(q*float64(len(d))))])
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// profiled writes a CPU profile of what fn does, and a heap profile after it.
func (o options) profiled(name string, fn func() error) error {
	if o.profile == "" {
		return fn()
	}
	if err := os.MkdirAll(o.profile, 0o755); err != nil {
		return err
	}
	cpu, err := os.Create(filepath.Join(o.profile, name+".cpu"))
	if err != nil {
		return err
	}
	defer cpu.Close()
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return err
	}
	err = fn()
	pprof.StopCPUProfile()
	if err != nil {
		return err
	}
	heap, err := os.Create(filepath.Join(o.profile, name+".heap"))
	if err != nil {
		return err
	}
	defer heap.Close()
	return pprof.WriteHeapProfile(heap)
}
