package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// measureRun is the wall and CPU time of a container that does nothing, from the command line to its end.
func measureRun(b *bench) []line {
	ours, theirs := inTurn(b.rounds,
		func() sample { return timed(b, b.gantry, b.command("run", "--rm", lab.Busybox, "true")) },
		func() sample { return timed(b, b.docker.node, b.docker.command("run", "--rm", lab.Busybox, "true")) })
	return []line{
		compare("`run --rm IMAGE true`, bridge network", ours.wall(), theirs.wall(), 0.25),
		compare("the same, CPU time of client, daemon and container", ours.cpu(), theirs.cpu(), 0.25),
	}
}

// measureStart is the time in the daemon from the request to a running process.
func measureStart(b *bench) []line {
	var ours, theirs series
	inTurn(b.rounds, func() sample {
		b.do(b.command("run", "-d", "--name", "start", lab.Busybox, "sleep", "1000"))
		var view = b.gantry.Instance(b, "start")
		ours = append(ours, view.Status.StartedAt.AsTime().Sub(view.Instance.Meta.CreatedAt.AsTime()).Seconds())
		b.do(b.command("rm", "-f", "start"))
		return sample{}
	}, func() sample {
		b.do(b.docker.command("run", "-d", "--name", "start", lab.Busybox, "sleep", "1000"))
		var at [2]time.Time
		for i, field := range strings.Fields(b.do(b.docker.command("inspect", "-f", "{{.Created}} {{.State.StartedAt}}", "start"))) {
			at[i], _ = time.Parse(time.RFC3339Nano, field)
		}
		theirs = append(theirs, at[1].Sub(at[0]).Seconds())
		b.do(b.docker.command("rm", "-f", "start"))
		return sample{}
	})
	return []line{{
		what: "detached start until the process runs, in the daemon", gantry: ours.times(), docker: theirs.times(),
		value: ours.p50() * 1e3, unit: "ms", goal: 60,
	}}
}

func measureCLI(b *bench) []line {
	var lines []line
	for _, command := range []struct {
		name string
		goal float64
	}{{"version", 20}, {"ps", 40}} {
		ours, theirs := inTurn(b.rounds,
			func() sample { return timed(b, b.gantry, b.command(command.name)) },
			func() sample { return timed(b, b.docker.node, b.docker.command(command.name)) })
		lines = append(lines, line{
			what: "`" + command.name + "`", gantry: ours.wall().times(), docker: theirs.wall().times(),
			value: ours.wall().p50() * 1e3, unit: "ms", goal: command.goal,
		})
	}
	return lines
}

func measureIdle(b *bench) []line {
	quiet()
	ours := resident(b.gantry.DaemonPID(b))
	var theirs float64
	for _, pid := range b.docker.node.Processes(b) {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(filepath.Base(exe), "dockerd") ||
			filepath.Base(exe) == "containerd" {
			theirs += resident(pid)
		}
	}
	return []line{{
		what: "resident memory of the idle daemon (Docker: dockerd and containerd)", gantry: mib(ours), docker: mib(theirs),
		value: ours, unit: "MiB", goal: 200,
	}}
}

const scaleCompose = `
version: "3"
services:
  box:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 1s
`

// measureScale is the time from scale to all running, and what a running container costs beyond its process.
func measureScale(b *bench) []line {
	project := lab.Project(b, scaleCompose)
	b.docker.copyProject(b, project)
	all := fmt.Sprintf("box=%d", b.scale)

	b.gantry.GantryIn(b, project, "up")
	b.do(b.docker.compose(project, "up", "-d"))
	quiet()
	oursBefore, theirsBefore := memory(b, b.gantry, "busybox"), memory(b, b.docker.node, "busybox")

	began := time.Now()
	b.gantry.GantryIn(b, project, "scale", all)
	b.gantry.AwaitReady(b, "box", b.scale)
	ours := series{time.Since(began).Seconds()}
	b.Logf("scaled in %.1f s", ours[0])
	began = time.Now()
	b.do(b.docker.compose(project, "up", "-d", "--scale", all))
	theirs := series{time.Since(began).Seconds()}
	b.Logf("Docker scaled in %.1f s", theirs[0])

	quiet()
	more := float64(b.scale - 1)
	oursEach := (memory(b, b.gantry, "busybox") - oursBefore) / more
	theirsEach := (memory(b, b.docker.node, "busybox") - theirsBefore) / more
	b.gantry.GantryIn(b, project, "down")
	// Docker of this age sometimes keeps the network of a hundred containers; the machine goes away in any case.
	if out, err := b.docker.compose(project, "down", "-t", "0").CombinedOutput(); err != nil {
		b.Logf("docker-compose down: %v: %s", err, out[max(0, len(out)-200):])
	}
	return []line{
		compare(fmt.Sprintf("%d containers of one service, from scale to all running", b.scale), ours, theirs, 0.3),
		{
			what: "memory per running container beyond its process (PSS)", gantry: fmt.Sprintf("%.2f MiB", oursEach),
			docker: fmt.Sprintf("%.2f MiB", theirsEach), value: oursEach / theirsEach, goal: 0.5,
		},
	}
}

const networkCompose = `
services:
  server:
    image: busybox:lab
    command: /t/traffic serve :9000
    volumes: ["./tools:/t:ro"]
  client:
    image: busybox:lab
    command: sleep 100000
    volumes: ["./tools:/t:ro"]
`

// measureNetwork compares a service's virtual address with an instance's own, between two containers.
func measureNetwork(b *bench) []line {
	project := lab.Project(b, networkCompose)
	tools := filepath.Join(project, "tools")
	fatal(b, os.Mkdir(tools, 0o755))
	build := exec.Command("go", "build", "-o", tools, "./test/bench/traffic")
	build.Env, build.Dir = append(os.Environ(), "CGO_ENABLED=0"), lab.Top(b)
	b.do(build)
	b.gantry.GantryIn(b, project, "up")
	direct := b.gantry.AwaitReady(b, "server", 1)[0].Status.Address + ":9000"
	quiet()
	text := b.gantry.GantryIn(b, project, "exec", "client", "/t/traffic", "compare", "31", "server:9000", direct)
	b.gantry.GantryIn(b, project, "down")
	type result struct{ BytesPerSecond, ConnsPerSecond float64 }
	var virtual, own result
	decoder := json.NewDecoder(strings.NewReader(text))
	fatal(b, decoder.Decode(&virtual))
	fatal(b, decoder.Decode(&own))
	return []line{
		{
			what: "virtual address against an instance's own, one TCP stream", docker: "–", atLeast: true, goal: 0.95,
			gantry: fmt.Sprintf("%.2f of %.2f GB/s", virtual.BytesPerSecond/1e9, own.BytesPerSecond/1e9), value: virtual.BytesPerSecond / own.BytesPerSecond,
		},
		{
			what: "the same, 1,000 short connections", docker: "–", atLeast: true, goal: 0.95,
			gantry: fmt.Sprintf("%.0f of %.0f/s", virtual.ConnsPerSecond, own.ConnsPerSecond), value: virtual.ConnsPerSecond / own.ConnsPerSecond,
		},
	}
}

const buildDockerfile = `FROM busybox:lab
RUN mkdir /app && i=0; while [ $i -lt 200 ]; do echo $i > /app/f$i; i=$((i+1)); done
COPY vendor /app/vendor
RUN cat /app/vendor/* > /app/all
COPY main.txt /app/
RUN wc /app/main.txt > /app/size
`

// measureBuild is a rebuild with everything cached, and with one source file changed.
func measureBuild(b *bench) []line {
	dir := b.TempDir()
	fatal(b, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(buildDockerfile), 0o644))
	fatal(b, os.Mkdir(filepath.Join(dir, "vendor"), 0o755))
	for i := range 100 {
		fatal(b, os.WriteFile(filepath.Join(dir, "vendor", fmt.Sprint(i)), []byte(strings.Repeat("x", 10_000)), 0o644))
	}
	edits := 0
	edit := func() {
		edits++
		fatal(b, os.WriteFile(filepath.Join(dir, "main.txt"), []byte(strings.Repeat(fmt.Sprintln(edits), 100)), 0o644))
	}
	ours := func() sample { return timed(b, b.gantry, b.command("build", "-t", "bench:1", dir)) }
	theirs := func() sample { return timed(b, b.docker.node, b.docker.command("build", "-t", "bench:1", dir)) }
	edit()
	cachedOurs, cachedTheirs := inTurn(b.rounds/3+1, ours, theirs)
	changedOurs, changedTheirs := inTurn(b.rounds/3+1,
		func() sample { edit(); return ours() },
		func() sample { edit(); return theirs() })
	return []line{
		compare("rebuild, everything cached (Docker with BuildKit)", cachedOurs.wall(), cachedTheirs.wall(), 0.7),
		compare("rebuild, one source file changed", changedOurs.wall(), changedTheirs.wall(), 0.7),
	}
}

// compare is a line whose figure is the ratio of medians.
func compare(what string, ours, theirs series, goal float64) line {
	return line{what: what, gantry: ours.times(), docker: theirs.times(), value: ours.p50() / theirs.p50(), goal: goal}
}

func mib(n float64) string { return fmt.Sprintf("%.0f MiB", n) }
