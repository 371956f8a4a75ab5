package main

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// series is one quantity measured several times.
type series []float64

func (s series) quantile(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (s series) p50() float64 { return s.quantile(0.5) }

// times prints a series of seconds as milliseconds.
func (s series) times() string {
	if len(s) == 1 {
		return fmt.Sprintf("%.1f ms", s[0]*1e3)
	}
	return fmt.Sprintf("%.1f ms (p99 %.1f)", s.p50()*1e3, s.quantile(0.99)*1e3)
}

// sample is the wall time and CPU time of one operation, in seconds: the client's own and the machine's.
type sample struct{ wall, cpu float64 }

type samples []sample

func (s samples) wall() series {
	out := make(series, len(s))
	for i := range s {
		out[i] = s[i].wall
	}
	return out
}

func (s samples) cpu() series {
	out := make(series, len(s))
	for i := range s {
		out[i] = s[i].cpu
	}
	return out
}

// timed runs a command and measures it; the machine's CPU time is read before and after.
func timed(t testing.TB, node *lab.Node, cmd *exec.Cmd) sample {
	before := node.CPUTime(t)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	wall := time.Since(began)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	client := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return sample{wall.Seconds(), (node.CPUTime(t) - before + client).Seconds()}
}

// inTurn measures two ways A, B, A, B … so that other load on the host meets both alike. One round is not counted.
func inTurn(rounds int, a, b func() sample) (ofA, ofB samples) {
	quiet()
	a()
	b()
	for range rounds {
		ofA, ofB = append(ofA, a()), append(ofB, b())
	}
	return ofA, ofB
}

// quiet waits, at most 20 seconds, until others leave the processors alone.
func quiet() {
	for range 20 {
		text, err := os.ReadFile("/proc/pressure/cpu")
		if err != nil {
			return
		}
		_, rest, _ := strings.Cut(string(text), "avg10=")
		value, _, _ := strings.Cut(rest, " ")
		if pressure, err := strconv.ParseFloat(value, 64); err != nil || pressure < 10 {
			return
		}
		time.Sleep(time.Second)
	}
}

// memory sums the proportional set sizes, in MiB, of a machine's processes except those of the containers.
func memory(t testing.TB, node *lab.Node, except string) float64 {
	var total float64
	for _, pid := range node.Processes(t) {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || strings.HasSuffix(filepath.Base(exe), except) || strings.HasSuffix(exe, "/bash") || strings.HasSuffix(exe, "/sleep") {
			continue
		}
		total += field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
	}
	return total / 1024
}

// resident is the resident memory of a process in MiB.
func resident(pid int) float64 { return field(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:") / 1024 }

// field reads a number that follows a name at the start of a line.
func field(path, name string) float64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == name {
			value, _ := strconv.ParseFloat(fields[1], 64)
			return value
		}
	}
	return 0
}
