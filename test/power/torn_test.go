package power_test

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// TestTornWrites cuts the power in the middle of a write, TORN times: half of what was written is on disk, and so is nothing that
// was not synced. The next start needs no help, and what was acknowledged is there.
func TestTornWrites(t *testing.T) {
	times := number(t, "TORN", 0)
	if times == 0 {
		t.Skip("takes minutes: make power")
	}
	seed := uint64(number(t, "SEED", 1))
	t.Logf("SEED=%d", seed)
	p := begin(t, lab.Shape{Servers: 1, Volatile: lab.LazyFS}, seed)
	n, random := p.Node(0), rand.New(rand.NewPCG(seed, 9))
	for range times {
		if t.Failed() {
			return
		}
		files := p.written(t)
		file, write := files[random.IntN(len(files))], 1+random.IntN(40)
		n.PowerOff(t)
		n.TearWrite(t, file, write)
		n.PowerOnly(t)
		err := n.TryStartDaemon(15 * time.Second)
		stop := p.write(t)
		torn := p.awaitTorn(3 * time.Second)
		n.PowerOff(t)
		stop()
		n.TearWrite(t, "", 0)
		n.PowerOn(t)
		t.Logf("%s: write %d: torn: %v; start before: %v", file, write, torn, err)
		p.look(t, true)
	}
	p.running(t)
	t.Logf("%d changes acknowledged", p.book.acknowledged())
}

// written lists files of the state that are written in place.
func (p *plant) written(t *testing.T) []string {
	t.Helper()
	root := p.Node(0).Path("")
	var out []string
	for _, pattern := range []string{"etcd/member/wal/*.wal", "etcd/member/snap/db", "engine/containerd/io.containerd.metadata.v1.bolt/meta.db"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		name, err := filepath.Rel(root, found[len(found)-1])
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, name)
	}
	return out
}

// awaitTorn waits until the disk is gone, and reports whether it is.
func (p *plant) awaitTorn(patience time.Duration) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if p.Node(0).TryExec("ls", p.Node(0).Root()+"/etcd").Code != 0 {
			return true
		}
	}
	return false
}
