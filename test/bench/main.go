// Command bench measures Gantry beside Docker, on the same machine in the same minutes, and prints a table.
//
//	go run ./test/bench [-rows run,idle] [-rounds 30] [-o doc/benchmarks.md]
//
// Both daemons run on machines of the lab (package test/lab), each with namespaces, cgroups and a disk folder of its own;
// Docker is Debian's docker.io in a throw-away root. Each row measures the two in turn. It needs root.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// row is one line of the table.
type row struct {
	name    string
	measure func(b *bench) []line
}

// line is a finished measurement. Value is what the goal is about: a ratio, milliseconds or MiB.
type line struct {
	what, gantry, docker string
	value                float64
	unit                 string  // "", "ms" or "MiB"
	goal                 float64 // 0 for none
	atLeast              bool    // the goal is a lower bound
}

var rows = []row{
	{"run", measureRun}, {"start", measureStart}, {"cli", measureCLI}, {"idle", measureIdle},
	{"build", measureBuild}, {"network", measureNetwork}, {"scale", measureScale},
	{"node", measureNode}, {"overlay", measureOverlay},
}

// bench is what the rows share.
type bench struct {
	testing.TB
	gantry *lab.Node
	docker *docker
	rounds int
	scale  int
}

func main() {
	names := flag.String("rows", "", "only these rows, separated by commas")
	rounds := flag.Int("rounds", 30, "how often each way is measured")
	scale := flag.Int("scale", 100, "containers of the scale row")
	cache := flag.String("cache", "/var/cache/gantry-bench", "where Docker's root is kept between runs")
	out := flag.String("o", "", "also write the table to this file")
	flag.Parse()

	os.Exit(lab.Main(func(t testing.TB) {
		b := start(t, *cache)
		b.rounds, b.scale = *rounds, *scale
		b.measure(strings.Split(*names, ","), *out)
	}))
}

// measure measures the named rows, or all, and prints the table.
func (b *bench) measure(names []string, out string) {
	var lines []line
	for _, r := range rows {
		if names[0] == "" || slices.Contains(names, r.name) {
			fmt.Fprintf(os.Stderr, "measuring %s\n", r.name)
			measured := r.measure(b)
			fmt.Fprint(os.Stderr, table(measured))
			lines = append(lines, measured...)
		}
	}
	text := table(lines) + b.machine()
	fmt.Print(text)
	if out != "" {
		fatal(b, os.WriteFile(out, []byte("# Benchmarks\n\n"+text), 0o644))
	}
}

// start brings both daemons up with the same image.
func start(h testing.TB, cache string) *bench {
	network := lab.Network(h)
	b := &bench{TB: h, gantry: network.AddNode(h, "")}
	// In memory, as /run is on a machine; docker.sh gives the peer the same.
	b.gantry.Exec(h, "mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", b.gantry.Run())
	b.gantry.StartDaemon(h)
	b.docker = startDocker(h, network.AddNode(h, ""), cache)
	archive := lab.BusyboxArchive(h)
	b.gantry.Gantry(h, "image", "import", archive)
	b.do(b.docker.command("load", "--input", archive))
	return b
}

// table prints the lines with what each has to reach.
func table(lines []line) string {
	var out strings.Builder
	out.WriteString("| what | Gantry | Docker | figure | goal | |\n|---|---|---|---|---|---|\n")
	for _, l := range lines {
		bound, met := "at most", l.value <= l.goal
		if l.atLeast {
			bound, met = "at least", l.value >= l.goal
		}
		verdict := "met"
		if !met {
			verdict = "**missed**"
		}
		unit := strings.TrimRight(" "+l.unit, " ")
		goal := fmt.Sprintf("%s %g%s", bound, l.goal, unit)
		if l.goal == 0 {
			goal, verdict = "–", ""
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %.2f%s | %s | %s |\n", l.what, l.gantry, l.docker, l.value, unit, goal, verdict)
	}
	return out.String()
}

// machine says where and with what the table was made, and how to make it again.
func (b *bench) machine() string {
	sh := func(script string) string {
		out, _ := exec.Command("sh", "-c", script).Output()
		return strings.TrimSpace(string(out))
	}
	docker, _ := b.docker.command("version", "--format", "{{.Server.Version}}").Output()
	return fmt.Sprintf("\n%s. %d × %s, %s MiB of memory, %s, kernel %s, %s. Gantry %s, Docker %s.\n\nRepeat with: `make bench`\n",
		time.Now().Format("2 January 2006"), runtime.NumCPU(), sh(`sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n1`),
		sh(`awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo`), sh(`. /etc/os-release; echo "$PRETTY_NAME"`), sh("uname -r"),
		runtime.Version(), sh("git describe --tags --always --dirty"), strings.TrimSpace(string(docker)))
}

// do runs a command that must not fail.
func (b *bench) do(cmd *exec.Cmd) string {
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// command is Gantry's command line.
func (b *bench) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(lab.Binaries(b), "gantry"), args...)
	cmd.Env = append(os.Environ(), "GANTRY_HOST="+b.gantry.Host())
	return cmd
}

func fatal(t testing.TB, err error) {
	if err != nil {
		t.Fatal(err)
	}
}
