package compose_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

const several = `
name: several
services:
  datagrams:
    image: busybox:lab
    command: /program/echo 84
    volumes: ["./program:/program:ro"]
    stop_grace_period: 100ms
    ports: ["8204:84/udp"]
    deploy: {labels: {team: red}}
  nameless:
    image: busybox:lab
    command: sh -c 'touch /data/of-no-name; exec sleep 100000'
    stop_grace_period: 100ms
    volumes: [/data]
  unless:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    restart: unless-stopped
  stopped:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 100ms
    restart: unless-stopped
  thrice:
    image: busybox:lab
    command: sh -c 'exit 3'
    restart: on-failure:2
    profiles: [failing]
  once:
    image: busybox:lab
    command: sh -c 'exit 0'
    restart: on-failure:2
    profiles: [failing]
`

// TestKeysOverTime shows what keys do that cannot be seen in a container at once.
func TestKeysOverTime(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	dir := lab.Project(t, several)
	build := exec.Command("go", "build", "-o", dir+"/program/echo", "./testdata/echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	n.GantryIn(t, dir, "up", "--timeout", "2m")
	t.Run("ports: udp", func(t *testing.T) { datagrams(t, n) })
	t.Run("deploy: labels", func(t *testing.T) {
		got := n.GantryIn(t, dir, "release", "ls", "datagrams", "-o", "json")
		if !regexp.MustCompile(`"labels": *\{\s*"team": *"red"`).MatchString(got) {
			t.Errorf("the release says\n%s", got)
		}
	})
	t.Run("restart: unless-stopped", func(t *testing.T) { unlessStopped(t, n, dir) })
	t.Run("restart: on-failure", func(t *testing.T) { onFailure(t, n, dir) })
	t.Run("volumes: anonymous", func(t *testing.T) {
		pattern := filepath.Join(n.Root(), "volumes/data/*/of-no-name")
		before, _ := filepath.Glob(pattern)
		n.GantryIn(t, dir, "up", "--timeout", "2m", "--force-recreate", "nameless")
		if now, _ := filepath.Glob(pattern); len(before) != 1 || len(now) != 1 || now[0] == before[0] {
			t.Errorf("the instance before had %v, the next one %v", before, now)
		}
		n.GantryIn(t, dir, "down")
		awaitNone(t, n)
		if left, _ := filepath.Glob(pattern); len(left) != 0 {
			t.Errorf("after down there is %v", left)
		}
	})
}

// datagrams asks the published port until an answer comes: a datagram may be lost.
func datagrams(t *testing.T, n *lab.Node) {
	conn, err := net.Dial("udp", n.Address()+":8204")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lab.Eventually(t, time.Minute, "an answer", func() error {
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(conn, "datagram"); err != nil {
			return err
		}
		buf := make([]byte, 100)
		count, err := conn.Read(buf)
		if err == nil && string(buf[:count]) != "got datagram\n" {
			err = fmt.Errorf("%q", buf[:count])
		}
		return err
	})
}

// unlessStopped kills an instance and stops another, and starts the daemon anew: only the one that was killed runs.
func unlessStopped(t *testing.T, n *lab.Node, dir string) {
	before := n.AwaitReady(t, "unless", 1)[0].Status.Pid
	n.GantryIn(t, dir, "kill", "unless.1")
	lab.Eventually(t, time.Minute, "it runs again", func() error {
		if view := n.Instance(t, "unless.1"); view == nil || !lab.Ready(view) || view.Status.Pid == before {
			return fmt.Errorf("%v", view)
		}
		return nil
	})
	n.GantryIn(t, dir, "stop", "stopped")
	n.Reboot(t)
	n.AwaitReady(t, "unless", 1)
	if view := n.Instance(t, "stopped.1"); view == nil || view.Status.Phase != gantryv1.InstanceStatus_PHASE_EXITED {
		t.Errorf("what was stopped is %v", view)
	}
	n.GantryIn(t, dir, "start", "stopped")
	n.AwaitReady(t, "stopped", 1)
}

// onFailure counts how often what fails is started again, and that what ends well is not.
func onFailure(t *testing.T, n *lab.Node, dir string) {
	if got := n.TryIn(dir, "up", "--timeout", "2m", "--profile", "failing", "thrice"); got.Code != 1 {
		t.Errorf("up of what fails: exit %d, %s", got.Code, got.Stderr)
	}
	n.TryIn(dir, "up", "--timeout", "2m", "--profile", "failing", "once")
	for name, want := range map[string]struct{ restarts, code int32 }{"thrice.1": {2, 3}, "once.1": {0, 0}} {
		lab.Eventually(t, time.Minute, name+" ends", func() error {
			if view := n.Instance(t, name); view == nil || view.Status.Phase != gantryv1.InstanceStatus_PHASE_EXITED && view.Status.Phase != gantryv1.InstanceStatus_PHASE_FAILED {
				return fmt.Errorf("%v", view)
			}
			return nil
		})
		if st := n.Instance(t, name).Status; int32(st.Restarts) != want.restarts || st.ExitCode != want.code {
			t.Errorf("%s: %d restarts, exit code %d, want %v", name, st.Restarts, st.ExitCode, want)
		}
	}
}

const clashes = `
name: clashes
services:
  takes: {image: "busybox:lab", command: sleep 100000, stop_grace_period: 100ms, ports: ["8205:80"]}
  calm: {image: "busybox:lab", command: sleep 100000, stop_grace_period: 100ms}
`

const foreign = `
name: foreign
services:
  other: {image: "IMAGE", command: sleep 100000, platform: linux/arm64, pull_policy: never}
`

// TestUpThatCannot brings up what cannot run here: it says why and leaves alone what can.
func TestUpThatCannot(t *testing.T) {
	n := lab.Machines(t, 1).Node(0)
	n.ImportBusybox(t)
	says := func(t *testing.T, dir string, words ...string) {
		t.Helper()
		got := n.TryWithin(3*time.Minute, dir, "up", "--timeout", "5s")
		if got.Code != 1 {
			t.Errorf("up: exit %d\n%s%s", got.Code, got.Stdout, got.Stderr)
		}
		for _, word := range append(words, "hint: ") {
			if !strings.Contains(got.Stderr, word) {
				t.Errorf("up does not say %q:\n%s", word, got.Stderr)
			}
		}
	}
	t.Run("a port that another container has", func(t *testing.T) {
		n.Gantry(t, "run", "-d", "--name", "holder", "-p", "8205:80", lab.Busybox, "sleep", "100000")
		before := n.Instance(t, "holder").Status.Pid
		dir := lab.Project(t, clashes)
		says(t, dir, "8205", "holder", "takes")
		n.AwaitReady(t, "calm", 1)
		if now := n.Instance(t, "holder"); now == nil || !lab.Ready(now) || now.Status.Pid != before {
			t.Errorf("the one that has the port is %v", now)
		}
		n.Gantry(t, "rm", "-f", "holder")
		n.GantryIn(t, dir, "up", "--timeout", "2m")
		n.AwaitReady(t, "takes", 1)
		n.GantryIn(t, dir, "down")
	})
	t.Run("a port that a program of the machine has", func(t *testing.T) {
		var taken net.Listener
		err := n.InNetwork(func() (err error) {
			taken, err = net.Listen("tcp", "0.0.0.0:8205")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		dir := lab.Project(t, clashes)
		says(t, dir, "8205", "takes")
		n.AwaitReady(t, "calm", 1)
		if err := errors.Join(taken.Close(), os.WriteFile(filepath.Join(dir, "again"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		n.GantryIn(t, dir, "up", "--timeout", "2m")
		n.AwaitReady(t, "takes", 1)
		n.GantryIn(t, dir, "down")
	})
	t.Run("the platform of another machine", func(t *testing.T) {
		says(t, lab.Project(t, strings.ReplaceAll(foreign, "IMAGE", lab.Busybox)), lab.Busybox, "not for this platform")
		n.Gantry(t, "image", "import", foreignImage(t))
		says(t, lab.Project(t, strings.ReplaceAll(foreign, "IMAGE", "busybox:foreign")), "does not run linux/arm64", "other")
		if view := n.Instance(t, "other.1"); view != nil && view.Status.Phase == gantryv1.InstanceStatus_PHASE_RUNNING {
			t.Errorf("it runs: %v", view)
		}
	})
}

// foreignImage is the lab's image as if it were made for another processor.
func foreignImage(t *testing.T) string {
	t.Helper()
	image, err := tarball.ImageFromPath(lab.BusyboxArchive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.Architecture = "arm64"
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "foreign.tar")
	tag, err := name.NewTag("busybox:foreign")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		t.Fatal(err)
	}
	return path
}
