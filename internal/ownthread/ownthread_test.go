package ownthread_test

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/ownthread"
)

func TestThreadsAreUsedOnce(t *testing.T) {
	var mu sync.Mutex
	var all sync.WaitGroup
	used := map[int]int{}
	for range 50 {
		all.Go(func() {
			_ = ownthread.Run(func() error {
				runtime.Gosched()
				mu.Lock()
				defer mu.Unlock()
				used[unix.Gettid()]++
				return nil
			})
		})
	}
	all.Wait()
	if used[os.Getpid()] != 0 {
		t.Error("the first thread was used")
	}
	want := errors.New("said")
	if err := ownthread.Run(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error %v", err)
	}
}

func TestTheProcessKeepsItsDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root")
	}
	before, err := os.Readlink("/proc/self/root")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		err := ownthread.Run(func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			return unix.Chroot(t.TempDir())
		})
		if err != nil {
			t.Fatal(err)
		}
		if after, err := os.Readlink("/proc/self/root"); err != nil || after != before {
			t.Fatalf("the process is in %q, %v", after, err)
		}
	}
}
