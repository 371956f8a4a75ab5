package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/fault"
)

// alone is the options of a cluster of one.
func alone(t *testing.T) cluster.Options {
	t.Helper()
	run, err := os.MkdirTemp("", "gm") // short: it holds Unix sockets
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	return cluster.Options{Root: filepath.Join(t.TempDir(), "etcd"), Run: run, Logger: slog.New(slog.DiscardHandler)}
}

func startAlone(t *testing.T, o cluster.Options) *cluster.Member {
	t.Helper()
	m, err := cluster.Start(t.Context(), o)
	check(t, err)
	t.Cleanup(m.Stop)
	return m
}

// fill writes values until one is not taken, or the member has failed, and returns how many were acknowledged.
func fill(t *testing.T, m *cluster.Member, size, most int, until <-chan error) int {
	t.Helper()
	value := strings.Repeat("x", size)
	for i := range most {
		select {
		case <-m.Failed():
			return i
		case <-until:
			return i
		default:
		}
		if err := put(t.Context(), m, fmt.Sprintf("fill/%04d", i), value); err != nil {
			return i
		}
	}
	t.Fatalf("%d values of %d bytes were taken", most, size)
	return 0
}

// kept fails unless all values that were acknowledged are there.
func kept(t *testing.T, m *cluster.Member, n, size int) {
	t.Helper()
	for i := range n {
		if got := read(t, m, fmt.Sprintf("fill/%04d", i)); len(got) != size {
			t.Fatalf("value %d of %d, which was acknowledged, has %d bytes", i, n, len(got))
		}
	}
}

// TestFailedWrite has a member that cannot write a snapshot: it fails alone, lets go of its files, and begins again with all
// that was acknowledged.
func TestFailedWrite(t *testing.T) {
	o := alone(t)
	m := startAlone(t, o)
	dir := filepath.Join(o.Root, "member", "snap")
	check(t, os.Rename(dir, dir+".away"))
	n := fill(t, m, 10, 5_000, nil)
	awaitFailed(t, m)
	if m.Stop(); m.Stuck() {
		t.Fatal("it has not let go of its files")
	}
	check(t, os.RemoveAll(dir))
	check(t, os.Rename(dir+".away", dir))
	kept(t, startAlone(t, o), n, 10)
}

// TestFailedLog has a member that cannot begin another file of its log. etcd cannot end then, and says so.
func TestFailedLog(t *testing.T) {
	o := alone(t)
	m := startAlone(t, o)
	dir := filepath.Join(o.Root, "member", "wal")
	check(t, os.Rename(dir, dir+".away"))
	fill(t, m, 6<<20, 100, nil)
	awaitFailed(t, m)
	if m.Stop(); !m.Stuck() {
		t.Error("it has let go of its files: it need not end the process any more")
	}
}

func awaitFailed(t *testing.T, m *cluster.Member) {
	t.Helper()
	select {
	case <-m.Failed():
	case <-time.After(time.Minute):
		t.Fatal("it has not failed")
	}
	if err := m.Failure(); !errors.Is(err, cluster.ErrFailed) || fault.HintOf(err) == "" {
		t.Errorf("failed by %v", err)
	}
}

// TestLogRoom has a member whose log has no next file.
func TestLogRoom(t *testing.T) {
	o := alone(t)
	m := startAlone(t, o)
	next, err := filepath.Glob(filepath.Join(o.Root, "member", "wal", "*.tmp"))
	check(t, err)
	for _, f := range next {
		check(t, os.Remove(f))
	}
	for range 5 {
		check(t, put(t.Context(), m, "large", strings.Repeat("x", 8<<20)))
	}
	room := make(chan error, 1)
	stop := make(chan error)
	go func() { room <- m.KeepRoom(t.Context()); close(stop) }()
	const size = 16 << 10
	n := fill(t, m, size, 5_000, stop)
	if err := <-room; !fault.Is(err, fault.Exhausted) || n < 100 {
		t.Errorf("after %d: %v", n, err)
	}
	if m.Stop(); m.Stuck() {
		t.Fatalf("it has not let go of its files: %v", m.Failure())
	}
	kept(t, startAlone(t, o), n, size)
}

// TestFullDisk fills the disk of a member and writes on: it says that it has to stop before it fails, and begins again when
// there is space.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: needs root")
	}
	o := alone(t)
	check(t, os.MkdirAll(o.Root, 0o700))
	check(t, syscall.Mount("none", o.Root, "tmpfs", 0, "size=380m"))
	t.Cleanup(func() { _ = syscall.Unmount(o.Root, syscall.MNT_DETACH) })
	m := startAlone(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	kept1 := make(chan error, 1)
	r := newRig(t)
	go func() { kept1 <- m.KeepRoom(ctx) }()
	db := filepath.Join(o.Root, "member", "snap", "db")
	r.eventually("the database has room", func() error {
		info, err := os.Stat(db)
		check(t, err)
		if info.Sys().(*syscall.Stat_t).Blocks*512 < info.Size()+64<<20 {
			return errors.New("it has not")
		}
		return nil
	})
	ballast := filepath.Join(o.Root, "ballast")
	f, err := os.Create(ballast)
	check(t, err)
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	check(t, f.Close())
	if !cluster.NewSpace(o.Root).Left().Short {
		t.Error("the disk is not called full")
	}
	stop := make(chan error)
	var reason error
	go func() { reason = <-kept1; close(stop) }()
	n := fill(t, m, 256<<10, 1000, stop)
	select {
	case <-stop:
	case <-time.After(time.Minute):
		t.Fatal("it does not say that it has to stop")
	}
	if !fault.Is(reason, fault.Exhausted) {
		t.Fatalf("it ended by %v", reason)
	}
	if m.Stop(); m.Stuck() {
		t.Fatalf("after %d: it has not let go of its files: %v", n, m.Failure())
	}
	t.Logf("on a full disk %d MB were taken", n/4)
	if n == 0 {
		t.Error("nothing was taken on a full disk")
	}
	// What the log had put aside went with its end: the member may begin again on the full disk, or say that it cannot.
	again, err := cluster.Start(t.Context(), o)
	if err == nil {
		kept(t, again, n, 256<<10)
		again.Stop()
	} else if !fault.Is(err, fault.Exhausted) {
		t.Errorf("on a full disk it begins with: %v", err)
	}
	check(t, os.Remove(ballast))
	if cluster.NewSpace(o.Root).Left().Short {
		t.Error("the disk is called full")
	}
	kept(t, startAlone(t, o), n, 256<<10)
}
