package lab_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/lab"
)

// bare makes a lab of machines without a daemon.
func bare(t *testing.T, n int) *lab.Lab {
	t.Helper()
	t.Setenv("GANTRY_BIN", t.TempDir())
	l := lab.Network(t)
	for range n {
		l.AddNode(t, "")
	}
	return l
}

// hears counts the datagrams that reach a machine on port 9000.
func hears(t *testing.T, n *lab.Node) func() int {
	t.Helper()
	var conn net.PacketConn
	err := n.InNetwork(func() (err error) {
		conn, err = net.ListenPacket("udp4", ":9000")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var heard atomic.Int64
	go func() {
		for buf := make([]byte, 64); ; heard.Add(1) {
			if _, _, err := conn.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	return func() int { return int(heard.Load()) }
}

func TestCutLinks(t *testing.T) {
	l := bare(t, 3)
	a, b, c := l.Node(0), l.Node(1), l.Node(2)
	expect := func(step string, ab, ac, bc bool) {
		t.Helper()
		for _, pair := range []struct {
			from, to *lab.Node
			want     bool
		}{{a, b, ab}, {b, a, ab}, {a, c, ac}, {c, a, ac}, {b, c, bc}, {c, b, bc}} {
			if got := answers(pair.from, pair.to.Address()); got != pair.want {
				t.Errorf("%s: %s reaches %s: %v", step, pair.from.Name(), pair.to.Name(), got)
			}
		}
	}
	expect("whole", true, true, true)
	l.Cut(t, a, b)
	expect("a and b cut", false, true, true)
	l.Heal(t)
	expect("healed", true, true, true)
	l.Partition(t, []*lab.Node{a}, []*lab.Node{b, c})
	expect("a alone", false, false, true)
	if !answers(a, a.Gateway()) {
		t.Error("a partition takes the test's own way to a machine")
	}
	l.Heal(t)
	c.Isolate(t)
	expect("c isolated", true, false, false)
	if answers(c, c.Gateway()) {
		t.Error("an isolated machine reaches the outside")
	}
	c.Heal(t)
	expect("c healed", true, true, true)
}

// TestOneWay uses datagrams: a connection needs both ways. Neighbours are known beforehand, as they are where a link breaks.
func TestOneWay(t *testing.T) {
	l := bare(t, 2)
	a, b := l.Node(0), l.Node(1)
	atB, atA := hears(t, b), hears(t, a)
	if !answers(a, b.Address()) || !answers(b, a.Address()) {
		t.Fatal("the machines do not reach each other")
	}
	send := func(from, to *lab.Node) {
		from.Exec(t, "bash", "-c", "echo x >/dev/udp/"+to.Address()+"/9000")
	}
	l.CutOneWay(t, a, b)
	send(a, b)
	send(b, a)
	lab.Eventually(t, 5*time.Second, "the way back", func() error {
		if atA() != 1 {
			return fmt.Errorf("%d heard", atA())
		}
		return nil
	})
	if atB() != 0 {
		t.Error("the cut way works")
	}
	l.Heal(t)
	a.Deafen(t)
	send(b, a)
	a.Mute(t)
	send(a, b)
	l.Heal(t)
	send(b, a)
	send(a, b)
	lab.Eventually(t, 5*time.Second, "healed", func() error {
		if atA() != 2 || atB() != 1 {
			return fmt.Errorf("a heard %d, b heard %d", atA(), atB())
		}
		return nil
	})
}

func TestLoss(t *testing.T) {
	l := bare(t, 2)
	a, b := l.Node(0), l.Node(1)
	atB := hears(t, b)
	if !answers(a, b.Address()) {
		t.Fatal("the machines do not reach each other")
	}
	l.Lose(t, 30, a, b)
	const sent = 200 // what the receiver's buffer holds
	a.Exec(t, "bash", "-c", fmt.Sprintf("for i in {1..%d}; do echo x; done >/dev/udp/%s/9000", sent, b.Address()))
	l.Heal(t)
	a.Exec(t, "bash", "-c", "echo x >/dev/udp/"+b.Address()+"/9000")
	got := 0
	lab.Eventually(t, 5*time.Second, "datagrams", func() error {
		before := got
		if got = atB(); got == 0 || got != before {
			return fmt.Errorf("%d so far", got)
		}
		return nil
	})
	// Nine standard deviations to each side.
	if got < sent*41/100 || got > sent*99/100 {
		t.Errorf("%d of %d arrived, want about 70 %%", got, sent)
	}
}

// TestDelay sends small packets and many bytes through the delay.
func TestDelay(t *testing.T) {
	l := bare(t, 2)
	a, b := l.Node(0), l.Node(1)
	connect := func() time.Duration {
		began := time.Now()
		conn, err := net.DialTimeout("tcp", a.Address()+":1", 10*time.Second)
		if err == nil {
			conn.Close()
			t.Fatal("somebody listens on port 1")
		}
		return time.Since(began)
	}
	const each = 100 * time.Millisecond
	connect() // the neighbour is known from here on
	a.Delay(t, each)
	if took := connect(); took < 2*each {
		t.Errorf("a round trip took %s, want at least %s", took, 2*each)
	}
	const bytes = 20 << 20
	out := filepath.Join(t.TempDir(), "received")
	receive := b.Command("bash", "-c", "busybox nc -l -p 9001 >"+out)
	if err := receive.Start(); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 30*time.Second, "sending", func() error {
		result := a.TryExec("bash", "-c", fmt.Sprintf("head -c %d /dev/zero >/dev/tcp/%s/9001", bytes, b.Address()))
		if result.Code != 0 {
			return fmt.Errorf("%s", result.Stderr)
		}
		return nil
	})
	if err := receive.Wait(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(out); err != nil || info.Size() != bytes {
		t.Errorf("received %v, %v", info, err)
	}
	l.Cut(t, a, b)
	if answers(b, a.Address()) {
		t.Error("a cut does not hold while frames are delayed")
	}
	l.Heal(t)
	if !answers(b, a.Address()) {
		t.Error("after the delay ended the machine is not reached")
	}
}

func TestFreeze(t *testing.T) {
	n := bare(t, 1).Node(0)
	file := filepath.Join(n.Root(), "ticks")
	ticker := n.Command("bash", "-c", "while :; do echo >>"+file+"; sleep 0.01; done")
	if err := ticker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ticker.Wait() })
	size := func() int64 {
		info, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	grows := func() bool {
		before := size()
		time.Sleep(200 * time.Millisecond)
		return size() != before
	}
	lab.Eventually(t, 5*time.Second, "ticks", func() error {
		if !grows() {
			return fmt.Errorf("none")
		}
		return nil
	})
	n.Freeze(t)
	if grows() {
		t.Error("a frozen machine works")
	}
	n.Thaw(t)
	if !grows() {
		t.Error("a thawed machine does not work")
	}
	n.Freeze(t)
	n.PowerOff(t) // what is frozen dies too
}
