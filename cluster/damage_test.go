package cluster_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/fault"
)

const (
	written   = 300
	valueSize = 200
)

// stopped is the directory of a member that has been stopped, with values in it.
func stopped(t *testing.T) cluster.Options {
	t.Helper()
	o := alone(t)
	m := startAlone(t, o)
	for i := range written {
		check(t, put(t.Context(), m, fmt.Sprintf("fill/%04d", i), strings.Repeat("x", valueSize)))
	}
	m.Stop()
	return o
}

// copyOf is the same options on a copy of the files.
func copyOf(t *testing.T, o cluster.Options) cluster.Options {
	t.Helper()
	c := alone(t)
	check(t, os.CopyFS(c.Root, os.DirFS(o.Root)))
	check(t, filepath.Walk(c.Root, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	}))
	return c
}

func newest(t *testing.T, o cluster.Options, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(o.Root, "member", pattern))
	check(t, err)
	if len(files) == 0 {
		t.Fatalf("there is no %s", pattern)
	}
	sort.Strings(files)
	return files[len(files)-1]
}

// used is how much of a file there is before the zeros at its end.
func used(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	check(t, err)
	return []byte(strings.TrimRight(string(text), "\x00"))
}

// opens starts a member on files that may be damaged: it starts with all keys, or refuses and says so.
func opens(t *testing.T, o cluster.Options, what string) (refused bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	m, err := cluster.Start(ctx, o)
	if err != nil {
		if !fault.Is(err, fault.Corrupt) || !strings.Contains(fault.HintOf(err), "gantry cluster restore") {
			t.Errorf("%s: %v", what, err)
		}
		return true
	}
	defer m.Stop()
	other := 0
	for i := range written {
		if got := read(t, m, fmt.Sprintf("fill/%04d", i)); len(got) != valueSize || strings.Trim(got, "x") != "" {
			other++
		}
	}
	if other > 1 {
		t.Errorf("%s: it starts, and %d of %d values are not what was acknowledged", what, other, written)
	}
	return false
}

// startsHarmed starts a member on a copy of the files to which harm has been done, and takes the copy away: two segments of
// the log are 128 MB.
func startsHarmed(t *testing.T, o cluster.Options, what string, harm func(t *testing.T, c cluster.Options)) (refused bool) {
	t.Run(what, func(t *testing.T) {
		c := copyOf(t, o)
		harm(t, c)
		refused = opens(t, c, what)
	})
	return refused
}

// TestDamage flips bits in the files of a member, and cuts them short: it never starts without what was acknowledged, and
// never ends the process.
func TestDamage(t *testing.T) {
	o := stopped(t)
	seed := uint64(1)
	if os.Getenv("FAULTS") != "" {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, pattern := range []string{"wal/*.wal", "snap/db"} {
		refused, rounds := 0, 12
		size := len(used(t, newest(t, o, pattern)))
		for range rounds {
			at, bit, to := random.IntN(size), byte(1)<<random.IntN(8), random.IntN(size)
			if startsHarmed(t, o, fmt.Sprintf("%s: bit %x of byte %d flipped", pattern, bit, at), func(t *testing.T, c cluster.Options) {
				text, err := os.ReadFile(newest(t, c, pattern))
				check(t, err)
				text[at] ^= bit
				check(t, os.WriteFile(newest(t, c, pattern), text, 0o600))
			}) {
				refused++
			}
			if !startsHarmed(t, o, fmt.Sprintf("%s: cut to %d", pattern, to), func(t *testing.T, c cluster.Options) {
				check(t, os.Truncate(newest(t, c, pattern), int64(to)))
			}) {
				t.Errorf("%s cut to %d of %d bytes: it starts", pattern, to, size)
			}
		}
		t.Logf("%s: %d of %d flipped bits were refused", pattern, refused, rounds)
	}
	startsHarmed(t, o, "no database", func(t *testing.T, c cluster.Options) { // all of it may be in the log
		check(t, os.Remove(newest(t, c, "snap/db")))
	})
}

// TestTornWrite has the end of a change at the end of the log, as a power cut leaves it: that change was never acknowledged.
func TestTornWrite(t *testing.T) {
	o := stopped(t)
	path := newest(t, o, "wal/*.wal")
	text := used(t, path)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	// A record of 256 bytes of which only the length was written.
	at := int64(len(text)+7) / 8 * 8
	_, err = f.WriteAt([]byte{0, 1, 0, 0, 0, 0, 0, 0}, at)
	check(t, err)
	check(t, f.Close())
	if opens(t, o, "a torn write") {
		t.Error("after a power cut it does not start")
	}
}
