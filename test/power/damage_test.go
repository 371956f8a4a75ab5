package power_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/test/lab"
)

const damagedApp = `name: ` + app + `
services:
  web:
    image: ` + lab.Busybox + `
    command: sh -c 'echo kept >>/data/file; exec sleep 100000'
    volumes: [data:/data]
    secrets: [word]
    stop_grace_period: 1s
volumes: {data: {}}
secrets: {word: {file: ./word}}
`

// TestDamage cuts every file that the daemon reads at its start in the middle, and flips bits of it, while the machine is off,
// DAMAGE times in all. The daemon refuses to start, or goes on without what it cannot read; it says which file and what to do.
// Or everything is as it was. Never does it panic, and never does it begin anew in silence.
func TestDamage(t *testing.T) {
	rounds := number(t, "DAMAGE", 0)
	if rounds == 0 {
		t.Skip("takes minutes: make power")
	}
	seed := uint64(number(t, "SEED", 1))
	t.Logf("SEED=%d", seed)
	n := lab.Form(t, lab.Shape{Servers: 1}).Node(0)
	n.ImportBusybox(t)
	n.GantryIn(t, lab.Project(t, damagedApp, "word", "open sesame"), "up")
	want := everything(t, n)
	n.PowerOff(t)
	whole := n.Root() + ".whole"
	copyTree(t, n.Root(), whole)
	random := rand.New(rand.NewPCG(seed, 0))
	told := map[string]int{}
	for _, name := range stateFiles(t, whole) {
		for round := range rounds {
			d := &damage{t: t, n: n, name: name, want: want}
			told[d.do(whole, random, round)]++
		}
	}
	t.Logf("%v", told)
}

// stateFiles lists the files of a root that the daemon itself writes and reads, without the bytes of images and containers,
// which have digests of their own or belong to others.
func stateFiles(t *testing.T, root string) []string {
	t.Helper()
	others := regexp.MustCompile(`/(snapshots|blobs|ingest|data|log)/|^lock$|shim-runtime$|\.tmp$`)
	var out []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		if err == nil && entry.Type().IsRegular() && !others.MatchString(name) {
			out = append(out, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// damage is one file that is damaged in one way.
type damage struct {
	t    *testing.T
	n    *lab.Node
	name string
	want string
	from int // where the daemon's log of this start begins
}

// do damages the file, starts the machine and judges what it does, and puts everything back.
func (d *damage) do(whole string, random *rand.Rand, round int) string {
	t, n := d.t, d.n
	copyTree(t, whole, n.Root())
	how, err := harmFile(filepath.Join(n.Root(), d.name), random, round == 0)
	if errors.Is(err, errEmpty) {
		return "empty"
	}
	if err != nil {
		t.Fatal(err)
	}
	d.from = len(n.DaemonLog())
	n.PowerOnly(t)
	err = n.TryStartDaemon(20 * time.Second)
	var result string
	if err == nil {
		result = d.judgeRunning()
	}
	n.PowerOff(t)
	log := n.DaemonLog()[d.from:]
	if err != nil {
		result = d.judgeRefusal(err, log)
	}
	t.Logf("%s: %s: %s", d.name, how, result)
	if strings.Contains(log, "panic:") || strings.Contains(log, "goroutine ") {
		t.Errorf("%s: %s: the daemon panicked:\n%s", d.name, how, last(log, 20))
	}
	return result
}

func (d *damage) judgeRefusal(err error, log string) string {
	if !strings.Contains(err.Error(), "ended") {
		d.t.Errorf("%s: the daemon neither ended nor answered: %v\n%s", d.name, err, last(log, 10))
		return "hung"
	}
	at := strings.LastIndex(log, "gantryd: ")
	// The exit code keeps a supervisor from starting it again and again.
	if !strings.HasSuffix(err.Error(), "exit status 78") || at < 0 || !strings.Contains(log[at:], "hint: ") || !strings.Contains(log[at:], d.n.Root()) {
		d.t.Errorf("%s: the daemon ended and did not say what is wrong and what to do:\n%s", d.name, last(log, 12))
		return "ended"
	}
	return "refused"
}

// judgeRunning compares what the daemon tells with what there was.
func (d *damage) judgeRunning() string {
	var got string
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if got = everything(d.t, d.n); got == d.want {
			return "as it was"
		}
	}
	if d.said() {
		return "runs without it, and said so"
	}
	d.t.Errorf("%s: the daemon runs and tells\n%s\nthere was\n%s\n%s", d.name, got, d.want, last(d.n.DaemonLog(), 15))
	return "other"
}

// said reports whether the daemon has named the file or its folder, with what to do.
func (d *damage) said() bool {
	top, _, _ := strings.Cut(d.name, "/")
	for line := range strings.Lines(d.n.DaemonLog()[d.from:]) {
		if strings.Contains(line, "level=ERROR") && strings.Contains(line, "hint=") && strings.Contains(line, filepath.Join(d.n.Root(), top)) {
			return true
		}
	}
	return false
}

var errEmpty = errors.New("an empty file cannot be damaged")

// harmFile cuts a file in the middle of what it holds, or flips a bit there, as a disk does: its name and attributes stay.
func harmFile(path string, random *rand.Rand, cut bool) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	held := bytes.TrimRight(content, "\x00")
	if len(held) == 0 {
		return "", errEmpty
	}
	if cut {
		clear(content[len(held)/2:])
		if len(held) == len(content) {
			content = content[:len(held)/2]
		}
		return fmt.Sprintf("cut at %d of %d", len(held)/2, len(held)), os.WriteFile(path, content, 0o600)
	}
	at := random.IntN(len(held))
	for content[at] == 0 {
		at = random.IntN(len(held))
	}
	content[at] ^= 1 << random.IntN(8)
	return fmt.Sprintf("bit at %d of %d", at, len(held)), os.WriteFile(path, content, 0o600)
}

// everything is what a client and the container itself can tell.
func everything(t *testing.T, n *lab.Node) string {
	t.Helper()
	c, err := client.New(client.Options{Host: n.Host()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, k := range kinds() {
		states, err := k.read(ctx, c)
		add("%s %v %v", k.name, states, err)
	}
	nodes, err := client.Call(ctx, c.Nodes.List, &gantryv1.ListNodesRequest{})
	for _, v := range nodes.GetNodes() {
		add("node %s %s %s %s", v.Node.Meta.Key, v.Node.Name, v.Node.Subnet, v.Node.Role)
	}
	add("%v", err)
	volumes, err := client.Call(ctx, c.Volumes.List, &gantryv1.ListVolumesRequest{Environment: environment})
	for _, v := range volumes.GetVolumes() {
		add("volume %s %s %s", v.Volume.Meta.Key, v.Volume.Driver, v.Mountpoint)
	}
	add("%v", err)
	views, err := n.TryInstances()
	for _, v := range views {
		add("instance %s %s %v", lab.Name(v), v.Instance.Meta.Key, lab.Ready(v))
	}
	add("%v", err)
	inside := n.TryWithin(10*time.Second, "", "exec", app+"/web", "sh", "-c", "head -1 /data/file; cat /run/secrets/word; id -u")
	add("inside %s", inside.Stdout)
	return strings.Join(out, "\n")
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func last(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
