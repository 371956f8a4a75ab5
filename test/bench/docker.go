package main

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

//go:embed docker.sh
var dockerScript string

// docker is the peer: the daemon of the distribution's docker.io, on a machine of the lab of its own.
type docker struct {
	node  *lab.Node
	root  string
	share string
}

// startDocker makes the peer's root, which is kept in cache for the next run, and starts the daemon.
func startDocker(t testing.TB, node *lab.Node, cache string) *docker {
	share, err := os.MkdirTemp("", "gbd")
	fatal(t, err)
	t.Cleanup(func() { os.RemoveAll(share) })
	d := &docker{node: node, root: dockerRoot(t, cache), share: share}
	script := filepath.Join(share, "docker.sh")
	fatal(t, os.WriteFile(script, []byte(dockerScript), 0o644))
	cmd := node.Command("bash", script, d.root, share)
	log, err := os.Create(filepath.Join(share, "dockerd.log"))
	fatal(t, err)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setsid: true}
	fatal(t, cmd.Start())
	go func() { _ = cmd.Wait() }()
	lab.Eventually(t, time.Minute, "dockerd", func() error {
		if out, err := d.command("version").CombinedOutput(); err != nil {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%s\n%s", out, text)
		}
		return nil
	})
	return d
}

// dockerRoot installs docker.io and docker-compose into a root of their own.
func dockerRoot(t testing.TB, cache string) string {
	root := filepath.Join(cache, "docker")
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/dockerd")); err == nil {
		return root
	}
	fatal(t, os.MkdirAll(cache, 0o755))
	codename, err := exec.Command("sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME").Output()
	fatal(t, err)
	args := []string{"--variant=minbase", "--aptopt=APT::Install-Recommends false",
		"--include=ca-certificates,iptables,iproute2,docker.io,docker-compose", strings.TrimSpace(string(codename)), root + ".new"}
	sources, _ := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	if text, err := os.ReadFile("/etc/apt/sources.list"); err == nil && len(text) > 0 {
		sources = append(sources, "/etc/apt/sources.list")
	}
	fatal(t, os.RemoveAll(root+".new"))
	if out, err := exec.Command("mmdebstrap", append(args, sources...)...).CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	fatal(t, os.Rename(root+".new", root))
	return root
}

// command is Docker's own command line, run directly so that nothing but it is timed.
func (d *docker) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(d.root, "usr/bin/docker"), append([]string{"--host", "unix://" + d.share + "/s"}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=1", "DOCKER_CONFIG="+d.share, "BUILDKIT_PROGRESS=plain")
	return cmd
}

// compose is docker-compose, which needs the root's Python.
func (d *docker) compose(project string, args ...string) *exec.Cmd {
	file := filepath.Join(d.share, filepath.Base(project), "compose.yaml")
	line := append([]string{"chroot", d.root, "env", "DOCKER_HOST=unix://" + d.share + "/s", "COMPOSE_PARALLEL_LIMIT=64",
		"docker-compose", "--file", file, "--project-name", "bench"}, args...)
	return d.node.Command(line...)
}

// share copies a project's Compose file to where the peer sees it.
func (d *docker) copyProject(t testing.TB, project string) {
	fatal(t, os.CopyFS(filepath.Join(d.share, filepath.Base(project)), os.DirFS(project)))
}
