package e2e_test

import (
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

func TestDaemonKilledContainersStay(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: crash
services:
  count: {image: "busybox:lab", command: ["sh", "-c", "`+strings.ReplaceAll(counter, "$", "$$")+`"]}
  sick:
    image: busybox:lab
    command: sleep 100000
    healthcheck: {test: ["CMD", "test", "!", "-e", "/tmp/sick"], interval: 1s, retries: 1}
`)
	n.GantryIn(t, dir, "up")
	before := n.AwaitReady(t, "count", 1)[0]
	kernelTable(t, n, "")
	n.Exec(t, "mount", "-t", "tmpfs", "tmpfs", "/dev/net") // a machine without TUN devices, from now on
	for range 5 {
		n.KillDaemon(t)
		n.StartDaemon(t)
	}
	kernelTable(t, n, "TUN devices")
	after := n.AwaitReady(t, "count", 1)[0]
	if before.Instance.Meta.Key != after.Instance.Meta.Key || before.Status.Pid != after.Status.Pid {
		t.Errorf("the container did not survive: %v, then %v", before.Status, after.Status)
	}
	if processes := strings.Count(n.Exec(t, "ps", "axo", "args"), "sh -c "+counter[:20]); processes != 1 {
		t.Errorf("the counter runs %d times", processes)
	}
	lab.Eventually(t, 10*time.Second, "log goes on", func() error {
		count := consecutive(t, n.GantryIn(t, dir, "logs", "--no-log-prefix", "count"))
		if lived := time.Since(before.Status.StartedAt.AsTime()); count < int(lived/(150*time.Millisecond)) {
			return fmt.Errorf("%d lines in %s", count, lived)
		}
		return nil
	})
	n.GantryIn(t, dir, "exec", "sick", "touch", "/tmp/sick")
	lab.Eventually(t, 20*time.Second, "health check goes on", func() error {
		if view := n.Instance(t, "sick.1"); view != nil && lab.Ready(view) {
			return fmt.Errorf("still healthy")
		}
		return nil
	})
}

// kernelTable wants that the daemon has said at its last start what the machine has and what the absence of the rest costs, as
// it tells the API; the machine lacks one feature at least, if that is named.
func kernelTable(t *testing.T, n *lab.Node, lacks string) {
	t.Helper()
	log := n.DaemonLog()
	head := strings.LastIndex(log, "FEATURE ")
	if head < 0 {
		t.Fatalf("the daemon's log has no table of the kernel's features:\n%s", log)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(log[head:]) {
		cells := regexp.MustCompile(` {2,}`).Split(strings.TrimSpace(line), -1)
		rows[cells[0]] = cells[1:]
	}
	info, err := n.Client(t).System.Info(t.Context(), connect.NewRequest(&gantryv1.InfoRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range info.Msg.Checks {
		row := rows[check.Feature]
		switch {
		case row == nil && check.Feature == "remapped root of containers": // known when the daemon has tried it
		case check.Present && (len(row) == 0 || row[0] != "yes"):
			t.Errorf("the table says of %s, which is here: %q", check.Feature, row)
		case !check.Present && (len(row) < 2 || row[0] != "no" || check.Cost == "" || row[len(row)-1] != check.Cost):
			t.Errorf("the table says of %s, which is missing and costs %q: %q", check.Feature, check.Cost, row)
		}
		if check.Feature == lacks && check.Present {
			t.Errorf("the daemon believes that there are %s", lacks)
		}
		if check.Feature == lacks {
			lacks = ""
		}
	}
	if lacks != "" {
		t.Errorf("%s is not in the table", lacks)
	}
}

// TestRestartsGoOn lets one process die while the daemon is away and another after it has come back. Both are restarted once, and
// it is counted; a third does not notice.
func TestRestartsGoOn(t *testing.T) {
	n := machine(t)
	const service = `{image: "busybox:lab", command: ["sh", "-c", "echo started; exec sleep 100000"]}`
	dir := lab.Project(t, "name: again\nservices:\n  away: "+service+"\n  back: "+service+"\n  calm: "+service+"\n")
	n.GantryIn(t, dir, "up")
	pids := map[string]uint32{}
	for _, name := range []string{"away", "back", "calm"} {
		pids[name] = n.AwaitReady(t, name, 1)[0].Status.Pid
	}
	kill := func(name string) { n.Exec(t, "kill", "-KILL", strconv.Itoa(int(pids[name]))) }

	n.KillDaemon(t)
	kill("away")
	n.StartDaemon(t)
	restartedOnce(t, n, dir, "away", pids["away"])
	kill("back")
	restartedOnce(t, n, dir, "back", pids["back"])
	restartedOnce(t, n, dir, "away", pids["away"])
	calm := n.AwaitReady(t, "calm", 1)[0].Status
	if calm.Pid != pids["calm"] || calm.Restarts != 0 {
		t.Errorf("calm had process %d, has %d after %d restarts", pids["calm"], calm.Pid, calm.Restarts)
	}
	if count := strings.Count(n.Exec(t, "ps", "-ww", "axo", "args"), "sleep 100000\n"); count != 3 {
		t.Errorf("%d processes of three services", count)
	}
	awaitNoStrays(t, n)
}

// restartedOnce waits until a service's process is another one, and wants it to be the second, for the daemon and in the log.
func restartedOnce(t *testing.T, n *lab.Node, dir, service string, before uint32) {
	t.Helper()
	lab.Eventually(t, time.Minute, service+" is restarted", func() error {
		view := n.Instance(t, service+".1")
		if view == nil || !lab.Ready(view) || view.Status.Pid == before {
			return fmt.Errorf("%v", view.GetStatus())
		}
		if view.Status.Restarts != 1 {
			t.Fatalf("%s was restarted once, and the daemon counts %d", service, view.Status.Restarts)
		}
		if log := n.GantryIn(t, dir, "logs", "--no-log-prefix", service); log != "started\nstarted\n" {
			return fmt.Errorf("its log is %q", log)
		}
		return nil
	})
}

// deed is something that a person asks for and, where the daemon was killed meanwhile, asks for again.
type deed struct {
	name    string
	prepare func(round int) // gives the deed of this round something to do; nil if it always has
	dir     string
	args    func() []string
	done    func(round int) // wants that it has come about; nil if there is nothing to see
}

// crashed is a machine whose daemon is killed in the middle of deeds.
type crashed struct {
	*lab.Node
	t            *testing.T
	churn, built string                   // folders of apps
	boxes        int                      // wanted instances of box
	took         map[string]time.Duration // what a deed took in peace, by its name, and what a start of the daemon did
	random       *rand.Rand
}

const churn = `
name: churn
services:
  count: {image: "busybox:lab", command: ["sh", "-c", "` + counter + `"], stop_grace_period: 500ms}
  box:
    image: busybox:lab
    command: sleep 100000
    stop_grace_period: 500ms
    environment: {ROUND: "%d"}
    deploy: {update_config: {parallelism: 2}}
`

const built = `
name: built
services:
  app: {build: ., command: sleep 200000, stop_grace_period: 500ms}
`

// TestDaemonKilledAtAnyPoint kills the daemon at random moments of whatever it may be doing. After each restart what was asked
// for comes about, nothing runs twice or lacks a line of its log, and nothing half-made is left.
func TestDaemonKilledAtAnyPoint(t *testing.T) {
	c := &crashed{Node: machine(t), t: t, built: lab.Project(t, built), boxes: 2, took: map[string]time.Duration{start: time.Second}}
	c.churn = lab.Project(t, "")
	c.writeChurn(0)
	c.GantryIn(t, c.churn, "up", "--scale", "box=2")
	c.leaveOrphan()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c.random = rand.New(rand.NewPCG(seed, 0))
	kills := 1
	if os.Getenv("FAULTS") != "" {
		kills = 12
	}
	round := 0
	for kill := range kills + 1 {
		for _, d := range c.deeds() {
			round++
			if kill == 0 {
				c.undisturbed(d, round)
			} else {
				c.killedDuring(d, round)
			}
			c.sound(fmt.Sprintf("round %d, %s", round, d.name))
		}
	}
	c.GantryIn(t, c.churn, "down")
	awaitNothing(t, c.Node) // nor what run --rm has made for clients that died with the daemon
	awaitNoStrays(t, c.Node)
	c.nothingIsStored()
}

// leaveOrphan asks for what `gantry run --rm` asks for, and is gone before it starts.
func (c *crashed) leaveOrphan() {
	c.t.Helper()
	_, err := c.Client(c.t).Instances.Create(c.t.Context(), connect.NewRequest(&gantryv1.CreateInstanceRequest{
		Environment: "production", Name: "orphan", Spec: &gantryv1.ContainerSpec{Image: lab.Busybox}, AutoRemove: true, WaitAttach: true,
	}))
	if err != nil {
		c.t.Fatal(err)
	}
}

// undisturbed does a deed in peace and notes how long the daemon takes for it.
func (c *crashed) undisturbed(d deed, round int) {
	if d.prepare != nil {
		d.prepare(round)
	}
	began := time.Now()
	c.GantryIn(c.t, d.dir, d.args()...)
	c.took[d.name] = time.Since(began)
	if d.done != nil {
		d.done(round)
	}
}

// killedDuring kills the daemon when a part of the time has passed that the deed takes, and the next one at its start, and asks for
// the deed once more.
func (c *crashed) killedDuring(d deed, round int) {
	if d.prepare != nil {
		d.prepare(round)
	}
	ended := make(chan lab.Result, 1)
	go func() { ended <- c.TryWithin(2*time.Minute, d.dir, d.args()...) }()
	inDeed, inStart := c.part(d.name), c.part(start)
	time.Sleep(inDeed)
	c.KillDaemon(c.t)
	result := <-ended
	// The kernel must have begun the process that is to be killed.
	startErr := c.TryStartDaemon(100*time.Millisecond + inStart)
	c.KillDaemon(c.t)
	c.t.Logf("round %d: killed %s into %s of %s (exit %d) and %s into a start of %s (answered: %t)", round, inDeed, d.name, c.took[d.name].Round(time.Millisecond),
		result.Code, inStart, c.took[start].Round(time.Millisecond), startErr == nil)
	began := time.Now()
	c.StartDaemon(c.t)
	c.took[start] = time.Since(began)
	c.GantryIn(c.t, d.dir, d.args()...)
	if d.done != nil {
		d.done(round)
	}
}

const start = "start"

// part is a random part of what something takes.
func (c *crashed) part(what string) time.Duration {
	return time.Duration(c.random.Float64() * float64(c.took[what])).Round(time.Millisecond)
}

// sound wants what must hold after every round.
func (c *crashed) sound(when string) {
	c.t.Helper()
	c.AwaitReady(c.t, "box", c.boxes)
	c.AwaitReady(c.t, "count", 1)
	// What a command has left to the daemon, such as the end of old instances, takes its time.
	lab.Eventually(c.t, time.Minute, when, func() error {
		if got := c.processes("sleep 100000"); got != c.boxes {
			return fmt.Errorf("%d processes for %d instances of box", got, c.boxes)
		}
		if got := c.processes("sh -c " + counter); got != 1 {
			return fmt.Errorf("the counter runs %d times", got)
		}
		return nil
	})
	consecutive(c.t, c.GantryIn(c.t, c.churn, "logs", "--no-log-prefix", "count"))
	awaitNoStrays(c.t, c.Node)
}

// nothingIsStored throws away all images and the builds' cache, and wants no snapshot, lease or blob on the disk then.
func (c *crashed) nothingIsStored() {
	c.t.Helper()
	c.Gantry(c.t, "system", "prune", "--all", "--force")
	lab.Eventually(c.t, time.Minute, "everything is thrown away", func() error {
		left, err := c.Stored()
		if err == nil && left != nil {
			err = fmt.Errorf("left: %s", strings.Join(left, "\n"))
		}
		return err
	})
	c.ImportBusybox(c.t)
	works(c.t, c.Node)
}

// processes counts the machine's processes with that command line.
func (c *crashed) processes(args string) int {
	c.t.Helper()
	count := 0
	for line := range strings.Lines(c.Exec(c.t, "ps", "-ww", "axo", "args")) {
		if strings.TrimSpace(line) == args {
			count++
		}
	}
	return count
}

func (c *crashed) write(path, text string) {
	c.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *crashed) writeChurn(round int) {
	c.write(filepath.Join(c.churn, "compose.yaml"), fmt.Sprintf(strings.ReplaceAll(churn, "$", "$$"), round))
}

func (c *crashed) deeds() []deed {
	archive := filepath.Join(c.t.TempDir(), "image.tar")
	return []deed{
		{name: "up --build", dir: c.built, prepare: c.writeDockerfile, args: asking("up", "--build"), done: c.newBuildRuns},
		{name: "run --rm", args: asking("run", "--rm", lab.Busybox, "sh", "-c", "echo began; sleep 0.3; echo ended")},
		{name: "image import", prepare: func(round int) { c.writeImage(archive, round) }, args: asking("image", "import", archive), done: c.imageIsWhole},
		{
			name: "scale", dir: c.churn, prepare: func(int) { c.boxes = 1 + (c.boxes+1)%4 },
			args: func() []string { return []string{"scale", fmt.Sprintf("box=%d", c.boxes)} },
		},
		{
			name: "rollout", dir: c.churn, prepare: c.writeChurn,
			args: func() []string { return []string{"up", "--scale", fmt.Sprintf("box=%d", c.boxes)} }, done: c.newReleaseRuns,
		},
		{name: "down", dir: c.built, prepare: func(int) { c.GantryIn(c.t, c.built, "up") }, args: asking("down"), done: c.appIsGone},
	}
}

func asking(args ...string) func() []string { return func() []string { return args } }

func (c *crashed) writeDockerfile(round int) {
	c.write(filepath.Join(c.built, "Dockerfile"), fmt.Sprintf(`FROM busybox:lab
RUN echo %d >/round; dd if=/dev/urandom of=/fill bs=64k count=64 2>&1; sleep 0.3
COPY compose.yaml /
RUN sleep 0.2; echo more >>/fill
`, round))
}

func (c *crashed) newBuildRuns(round int) {
	c.AwaitReady(c.t, "app", 1)
	if got := c.GantryIn(c.t, c.built, "exec", "app", "cat", "/round"); strings.TrimSpace(got) != strconv.Itoa(round) {
		c.t.Errorf("what runs was built in round %q, not %d", got, round)
	}
}

func (c *crashed) writeImage(path string, round int) {
	random := make([]byte, 8<<20)
	_, _ = crand.Read(random) // never fails
	lab.WriteImage(c.t, path, fmt.Sprintf("crash:%d", round), map[string][]byte{"round": []byte(strconv.Itoa(round)), "fill": random})
}

func (c *crashed) imageIsWhole(round int) {
	if got := c.Gantry(c.t, "run", "--rm", fmt.Sprintf("crash:%d", round), "sh", "-c", "cat /round; wc -c </fill"); got != fmt.Sprintf("%d%d\n", round, 8<<20) {
		c.t.Errorf("the image of round %d says %q", round, got)
	}
}

func (c *crashed) newReleaseRuns(round int) {
	for _, view := range c.AwaitReady(c.t, "box", c.boxes) {
		if got := c.GantryIn(c.t, c.churn, "exec", lab.Name(view), "sh", "-c", "echo $ROUND"); strings.TrimSpace(got) != strconv.Itoa(round) {
			c.t.Errorf("%s is of round %q, not %d", lab.Name(view), got, round)
		}
	}
}

func (c *crashed) appIsGone(int) {
	lab.Eventually(c.t, time.Minute, "app is gone", func() error {
		if got, view := c.processes("sleep 200000"), c.Instance(c.t, "app.1"); got != 0 || view != nil {
			return fmt.Errorf("%d processes, instance %v", got, view)
		}
		return nil
	})
}

func TestReboot(t *testing.T) {
	n := machine(t)
	dir := lab.Project(t, `
name: reboot
services:
  db:
    image: busybox:lab
    command: sh -c 'echo boot >>/data/boots; exec sleep 100000'
    volumes: ["data:/data"]
  web:
    image: busybox:lab
    command: sh -c 'mkdir -p /tmp/w; cat /etc/hostname >/tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w'
    ports: ["8090:80"]
    depends_on: [db]
  stopped: {image: "busybox:lab", command: sleep 100000}
volumes: {data: }
`)
	n.GantryIn(t, dir, "up")
	n.GantryIn(t, dir, "stop", "stopped")
	n.Reboot(t)
	n.AwaitReady(t, "db", 1)
	n.AwaitReady(t, "web", 1)
	if boots := n.GantryIn(t, dir, "exec", "db", "cat", "/data/boots"); boots != "boot\nboot\n" {
		t.Errorf("the volume holds %q", boots)
	}
	lab.Eventually(t, 10*time.Second, "published port", func() error { _, err := n.HTTPGet(":8090/"); return err })
	if view := n.Instance(t, "stopped.1"); view != nil && lab.Ready(view) {
		t.Error("a service that was stopped runs after the reboot")
	}
}

func TestSecretsStaySecret(t *testing.T) {
	n := machine(t)
	const canary = "canary-5f1d0c77-secret"
	dir := lab.Project(t, `
name: vault
services:
  reader:
    image: busybox:lab
    command: sleep 100000
    secrets: [key]
  other: {image: "busybox:lab", command: sleep 100000}
secrets:
  key: {file: ./key}
`, "key", canary)
	n.GantryIn(t, dir, "up")
	if got := n.GantryIn(t, dir, "exec", "reader", "cat", "/run/secrets/key"); got != canary {
		t.Errorf("the secret is %q", got)
	}
	if n.TryIn(dir, "exec", "other", "cat", "/run/secrets/key").Code == 0 {
		t.Error("another service reads the secret")
	}
	for _, args := range [][]string{{"inspect", "reader.1"}, {"secret", "ls", "--output", "json"}, {"events", "--since", "1h", "--until", "0s"}} {
		if result := n.TryIn(dir, args...); strings.Contains(result.Stdout+result.Stderr, canary) {
			t.Errorf("gantry %s shows the secret", strings.Join(args, " "))
		}
	}
	if strings.Contains(n.DaemonLog(), canary) {
		t.Error("the daemon's log shows the secret")
	}
	n.StopDaemon(t)
	if found := grep(t, n.Root(), canary); found != nil {
		t.Errorf("the secret is on disk in the clear: %v", found)
	}
	n.StartDaemon(t)
	n.AwaitReady(t, "reader", 1)
}

// grep lists the files under dir that hold text.
func grep(t *testing.T, dir, text string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil
		}
		body, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(body), text) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
