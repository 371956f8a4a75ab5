package cluster_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// mishap is one thing that can be done to a machine, and how it is undone.
type mishap struct {
	name string
	harm func(t *testing.T, n *lab.Node)
	mend func(t *testing.T, n *lab.Node)
}

// mishaps lists all of them. What Lab.Heal mends has no mend of its own.
func mishaps(random *rand.Rand) []mishap {
	heal := func(*testing.T, *lab.Node) {}
	start := func(t *testing.T, n *lab.Node) { n.StartDaemon(t) }
	percent := float64(random.IntN(40))
	wrong := time.Duration(random.IntN(7200)-3600) * time.Second
	return []mishap{
		{"kill", func(t *testing.T, n *lab.Node) { n.KillDaemon(t) }, start},
		{"stop", func(t *testing.T, n *lab.Node) { n.StopDaemon(t) }, start},
		{"pause", func(t *testing.T, n *lab.Node) { n.PauseDaemon(t) }, func(t *testing.T, n *lab.Node) { n.ResumeDaemon(t) }},
		{"freeze", func(t *testing.T, n *lab.Node) { n.Freeze(t) }, func(t *testing.T, n *lab.Node) { n.Thaw(t) }},
		{"power cut", func(t *testing.T, n *lab.Node) { n.PowerOff(t) }, func(t *testing.T, n *lab.Node) { n.PowerOn(t) }},
		{"isolate", func(t *testing.T, n *lab.Node) { n.Isolate(t) }, heal},
		{"mute", func(t *testing.T, n *lab.Node) { n.Mute(t) }, heal},
		{"deafen", func(t *testing.T, n *lab.Node) { n.Deafen(t) }, heal},
		{fmt.Sprintf("lose %.0f %%", percent), func(t *testing.T, n *lab.Node) { n.Lose(t, percent) }, heal},
		{"delay", func(t *testing.T, n *lab.Node) { n.Delay(t, 100*time.Millisecond) }, heal},
		{"flap", func(t *testing.T, n *lab.Node) { n.Flap(t, 200*time.Millisecond, 4*time.Second) }, heal},
		{"stall the disk", func(t *testing.T, n *lab.Node) { n.StallDisk(t) }, func(t *testing.T, n *lab.Node) { n.ResumeDisk(t) }},
		{"fill the disk", func(t *testing.T, n *lab.Node) { n.FillDisk(t) }, func(t *testing.T, n *lab.Node) { n.FreeDisk(t) }},
		{"clock wrong by " + wrong.String(), func(t *testing.T, n *lab.Node) { n.SetClock(t, wrong) }, func(t *testing.T, n *lab.Node) { n.SetClock(t, 0) }},
	}
}

// TestChaos does random harm to random machines while the application is changed, for MINUTES. SEED repeats a sequence; what
// the cluster does at each step may differ.
func TestChaos(t *testing.T) {
	minutes, err := strconv.ParseFloat(os.Getenv("MINUTES"), 64)
	if err != nil {
		t.Skip("runs by: make chaos SEED=1 MINUTES=30")
	}
	random := seeded(t)
	tr := begin(t, lab.Shape{Servers: 3, Nodes: 1, Disk: "2G"})
	tr.up(t, "web", 8)
	end := time.Now().Add(time.Duration(minutes * float64(time.Minute)))
	for round := 1; time.Now().Before(end); round++ {
		tr.chaos(t, round, random)
	}
	tr.settle(t)
}

// chaos is one round: one or two machines are harmed, the application is changed, everything is mended, and converges.
func (tr *trial) chaos(t *testing.T, round int, random *rand.Rand) {
	t.Helper()
	nodes := tr.Nodes()
	random.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	harmed := nodes[:1+random.IntN(2)]
	var did []mishap
	var names []string
	for _, n := range harmed {
		all := mishaps(random)
		f := all[random.IntN(len(all))]
		did, names = append(did, f), append(names, f.name+" "+n.Name())
	}
	hold := time.Second + time.Duration(random.Int64N(int64(14*time.Second)))
	tr.want["web"] = 4 + random.IntN(8)
	generation, by := 1+random.IntN(4), tr.Node(random.IntN(tr.shape.Servers))
	t.Logf("round %d: %s, for %s; web is %d of generation %d", round, strings.Join(names, ", "), hold.Round(time.Millisecond), tr.want["web"], generation)
	for i, n := range harmed {
		did[i].harm(t, n)
	}
	tr.write(t, generation)
	// Refused or not: it is asked for again below.
	result := by.TryWithin(hold, tr.dir, "up", "--detach")
	t.Logf("round %d: up through %s ended with %d", round, by.Name(), result.Code)
	time.Sleep(hold)
	for i, n := range harmed {
		did[i].mend(t, n)
	}
	tr.Heal(t)
	tr.AwaitNodes(t, len(nodes))
	by.GantryIn(t, tr.dir, "up", "--detach")
	tr.converge(t)
}
