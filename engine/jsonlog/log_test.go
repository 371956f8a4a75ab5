package jsonlog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/gantryd/gantry/engine/jsonlog"
)

func open(t testing.TB, dir string, o jsonlog.Options) *jsonlog.Log {
	t.Helper()
	l, err := jsonlog.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// write appends to a spool as a shim does.
func write(t testing.TB, l *jsonlog.Log, stream, text string) {
	t.Helper()
	path, stderr := l.Spools()
	if stream == "stderr" {
		path = stderr
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func pump(t testing.TB, l *jsonlog.Log) {
	t.Helper()
	if err := l.Pump(); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, l *jsonlog.Log, o jsonlog.ReadOptions) []string {
	t.Helper()
	var lines []string
	err := l.Read(context.Background(), o, func(e jsonlog.Entry) error {
		lines = append(lines, e.Stream+":"+string(e.Line))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func assertLines(t testing.TB, got []string, want ...string) {
	t.Helper()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("lines %q, want %q", got, want)
	}
}

func all() jsonlog.ReadOptions { return jsonlog.ReadOptions{Tail: -1} }

func TestWholeLinesOnly(t *testing.T) {
	l := open(t, t.TempDir(), jsonlog.Options{})
	write(t, l, "stdout", "one\ntw")
	write(t, l, "stderr", "bad\n")
	pump(t, l)
	assertLines(t, read(t, l, all()), "stdout:one\n", "stderr:bad\n")
	write(t, l, "stdout", "o\nthree")
	pump(t, l)
	assertLines(t, read(t, l, jsonlog.ReadOptions{Tail: 1}), "stdout:two\n")
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	assertLines(t, read(t, l, jsonlog.ReadOptions{Tail: 2}), "stdout:two\n", "stdout:three")
	assertLines(t, read(t, l, jsonlog.ReadOptions{Tail: 0}))
}

func TestFormIsDockers(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, jsonlog.Options{})
	write(t, l, "stdout", "a \"quoted\" \\ <tag>\ttab \x1b[1m\xff ü\n")
	pump(t, l)
	b, err := os.ReadFile(filepath.Join(dir, "json.log"))
	if err != nil {
		t.Fatal(err)
	}
	var entry struct {
		Log, Stream string
		Time        time.Time
	}
	if err := json.Unmarshal(b, &entry); err != nil || bytes.Count(b, []byte("\n")) != 1 {
		t.Fatalf("%v in %q", err, b)
	}
	if entry.Log != "a \"quoted\" \\ <tag>\ttab \x1b[1m\uFFFD ü\n" || entry.Stream != "stdout" || time.Since(entry.Time) > time.Minute {
		t.Errorf("entry %+v", entry)
	}
}

func TestLongLinesAreSplit(t *testing.T) {
	l := open(t, t.TempDir(), jsonlog.Options{})
	write(t, l, "stdout", strings.Repeat("x", 40<<10)+"\n")
	pump(t, l)
	var sizes []int
	for _, line := range read(t, l, all()) {
		sizes = append(sizes, len(line)-len("stdout:"))
	}
	if fmt.Sprint(sizes) != fmt.Sprint([]int{16 << 10, 16 << 10, 8<<10 + 1}) {
		t.Errorf("sizes %v", sizes)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, jsonlog.Options{MaxSize: 2000, MaxFiles: 3})
	for i := range 200 {
		write(t, l, "stdout", fmt.Sprintf("line %d\n", i))
		pump(t, l)
	}
	files, err := filepath.Glob(filepath.Join(dir, "json.log*"))
	if err != nil || len(files) != 3 {
		t.Errorf("%v, files %v", err, files)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 2200 {
			t.Errorf("%v, %+v", err, st)
		}
	}
	lines := read(t, l, all())
	if last := lines[len(lines)-1]; last != "stdout:line 199\n" || len(lines) < 40 {
		t.Errorf("%d lines, the last %q", len(lines), last)
	}
	// A tail that spans files.
	if tail := read(t, l, jsonlog.ReadOptions{Tail: 35}); len(tail) != 35 || tail[0] != "stdout:line 165\n" {
		t.Errorf("%d lines from %q", len(tail), tail[0])
	}
}

// TestBurstIsRotated takes over at once what is many times the size of a file.
func TestBurstIsRotated(t *testing.T) {
	dir := t.TempDir()
	const size, files = 2000, 400
	l := open(t, dir, jsonlog.Options{MaxSize: size, MaxFiles: files})
	var burst strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&burst, "line %d\n", i)
	}
	write(t, l, "stdout", burst.String()+"unfinished")
	pump(t, l)
	write(t, l, "stdout", " line\n")
	pump(t, l)
	names, err := filepath.Glob(filepath.Join(dir, "json.log*"))
	if err != nil || len(names) < 100 || len(names) >= files {
		t.Fatalf("%v, %d files", err, len(names))
	}
	for _, name := range names {
		if st, err := os.Stat(name); err != nil || st.Size() >= size+100 || st.Size() < size && name != filepath.Join(dir, "json.log") {
			t.Errorf("%v, %s has %d bytes, not %d and at most a line more", err, name, st.Size(), size)
		}
	}
	lines := read(t, l, all())
	if len(lines) != 5001 || lines[5000] != "stdout:unfinished line\n" {
		t.Fatalf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
	for i, line := range lines[:5000] {
		if line != fmt.Sprintf("stdout:line %d\n", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

func TestFollowThroughRotation(t *testing.T) {
	l := open(t, t.TempDir(), jsonlog.Options{MaxSize: 300, MaxFiles: 2})
	done := make(chan struct{})
	var got []string
	ready := make(chan struct{}, 1000)
	var g errgroup.Group
	g.Go(func() error {
		return l.Read(context.Background(), jsonlog.ReadOptions{Tail: -1, Done: done}, func(e jsonlog.Entry) error {
			got = append(got, string(e.Line))
			ready <- struct{}{}
			return nil
		})
	})
	var want []string
	for i := range 100 {
		line := fmt.Sprintf("line %d\n", i)
		want = append(want, line)
		write(t, l, "stdout", line)
		pump(t, l)
		<-ready
	}
	close(done)
	if err := g.Wait(); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, got %q", err, got)
	}
}

func TestSinceAndUntil(t *testing.T) {
	l := open(t, t.TempDir(), jsonlog.Options{})
	write(t, l, "stdout", "early\n")
	pump(t, l)
	border := time.Now()
	write(t, l, "stdout", "late\n")
	pump(t, l)
	assertLines(t, read(t, l, jsonlog.ReadOptions{Tail: -1, Since: border}), "stdout:late\n")
	assertLines(t, read(t, l, jsonlog.ReadOptions{Tail: -1, Until: border}), "stdout:early\n")
}

func TestWrittenWhileNobodyLooked(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, jsonlog.Options{})
	write(t, l, "stdout", "then\n")
	then := time.Now().Add(-time.Hour).Truncate(time.Second)
	stdout, _ := l.Spools()
	if err := os.Chtimes(stdout, then, then); err != nil {
		t.Fatal(err)
	}
	pump(t, l)
	err := l.Read(context.Background(), all(), func(e jsonlog.Entry) error {
		if !e.Time.Equal(then) {
			t.Errorf("time %s, want the spool's %s", e.Time, then)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSpoolIsGivenBack(t *testing.T) {
	l := open(t, t.TempDir(), jsonlog.Options{Discard: true})
	for range 16 {
		write(t, l, "stdout", strings.Repeat(strings.Repeat("x", 1023)+"\n", 1024))
		pump(t, l)
	}
	stdout, _ := l.Spools()
	var st unix.Stat_t
	if err := unix.Stat(stdout, &st); err != nil || st.Size != 16<<20 || st.Blocks*512 > 64<<10 {
		t.Errorf("%v, size %d, on disk %d", err, st.Size, st.Blocks*512)
	}
}

func TestTap(t *testing.T) {
	l := open(t, t.TempDir(), jsonlog.Options{})
	write(t, l, "stdout", "old\nhalf")
	pump(t, l)
	var text string
	tap, err := l.TapFromStart(func(c jsonlog.Chunk) error { text += string(c.Data); return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	write(t, l, "stdout", " way\nprompt> ")
	pump(t, l)
	chunks, open := tap.Next()
	for _, c := range chunks {
		text += string(c.Data)
	}
	if text != "old\nhalf way\nprompt> " || !open {
		t.Errorf("text %q, open %v", text, open)
	}
}

func TestASlowTapDoesNotHoldTheLogUp(t *testing.T) {
	l := open(t, t.TempDir(), jsonlog.Options{})
	tap := l.Tap()
	for range 10 {
		write(t, l, "stdout", strings.Repeat("x", 1<<20)+"\n")
		pump(t, l)
	}
	if _, open := tap.Next(); open || !tap.Slow() {
		t.Error("the tap was not cut off")
	}
}

func TestSinkIsAskedAgain(t *testing.T) {
	down, got := true, ""
	l := open(t, t.TempDir(), jsonlog.Options{Sink: func(_ string, line []byte, _ time.Time) error {
		if down {
			return errors.New("server is down")
		}
		got += string(line)
		return nil
	}})
	write(t, l, "stdout", "one\ntwo\n")
	pump(t, l)
	down = false
	write(t, l, "stdout", "three\n")
	pump(t, l)
	if got != "one\ntwo\nthree\n" {
		t.Errorf("sink got %q", got)
	}
}

// A log that is opened again at any moment, its files as they were at any earlier moment after the last record, has
// every line once and in order.
func TestNoLineIsLostOrDoubled(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "log")
		if err != nil {
			t.Fatal(err)
		}
		o := jsonlog.Options{MaxSize: 4000, MaxFiles: 1000}
		l := open(t, dir, o)
		n := 0
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			for range rapid.IntRange(0, 30).Draw(rt, "lines") {
				write(t, l, "stdout", fmt.Sprintf("%d\n", n))
				n++
			}
			switch rapid.IntRange(0, 3).Draw(rt, "step") {
			case 0: // killed between writing entries and recording them
				garbage(t, dir)
				l = open(t, dir, o)
			case 1: // killed cleanly
				l = open(t, dir, o)
			default:
				pump(t, l)
			}
		}
		pump(t, l)
		lines := read(t, l, all())
		if len(lines) != n {
			rt.Fatalf("%d lines, want %d", len(lines), n)
		}
		for i, line := range lines {
			if line != fmt.Sprintf("stdout:%d\n", i) {
				rt.Fatalf("line %d is %q", i, line)
			}
		}
	})
}

// garbage leaves entries in the file that no record knows of, the last one torn.
func garbage(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "json.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(`{"log":"ghost\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}` + "\n" + `{"log":"to`); err != nil {
		t.Fatal(err)
	}
}

func TestRunPumpsAndTellsTheEnd(t *testing.T) {
	w, err := jsonlog.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, t.TempDir(), jsonlog.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return w.Run(ctx) })
	ended := make(chan struct{})
	tap := l.Tap()
	f, err := l.Follow(w)
	if err != nil {
		t.Fatal(err)
	}
	g.Go(func() error { return f.Run(ctx, 2, func() { close(ended) }) })
	write(t, l, "stdout", "hello\n") // opens, writes, closes
	<-tap.Ready()
	write(t, l, "stderr", "unfinished")
	<-ended
	assertLines(t, read(t, l, all()), "stdout:hello\n", "stderr:unfinished")
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("no tmpfs can be mounted: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	l := open(t, dir, jsonlog.Options{})
	line := strings.Repeat("y", 99) + "\n"
	write(t, l, "stdout", strings.Repeat(line, 500))
	fill := filepath.Join(dir, "fill")
	f, err := os.Create(fill)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write(make([]byte, 1<<20)) // until nothing fits any more
	_ = f.Close()
	if err := l.Pump(); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("error %v", err)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	pump(t, l)
	if n := len(read(t, l, all())); n != 500 {
		t.Errorf("%d lines once there is room, want 500", n)
	}
}
