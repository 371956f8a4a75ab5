// Package jsonlog turns what a container writes into log files in the form of Docker's json-file driver, rotated.
//
// The container's shim appends raw output to two spool files by itself, so a container neither blocks nor loses output
// while no daemon runs. Open a Log on the directory, call Pump whenever a spool has grown (Watcher tells), read entries
// with Read and raw output with Tap. Pump records how far it has come with every batch: after a crash no line is lost
// and none comes twice. All methods are safe in parallel. Times of lines written while no daemon ran are those of the
// spool file's last change.
package jsonlog

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

const (
	// maxLine is where a longer line is split, as Docker does.
	maxLine = 16 << 10
	// batch is how much of a spool is read at a time.
	batch = 256 << 10
)

// Names of the files in a log's directory.
const (
	stdoutFile   = "stdout"
	stderrFile   = "stderr"
	jsonFile     = "json.log"
	positionFile = "position"
)

// Options of a log.
type Options struct {
	MaxSize  int64 // size at which the file is rotated; 0 means never
	MaxFiles int   // number of files kept, the current one included; less than 1 means 1
	// Discard keeps nothing (driver "none"); taps still see the output.
	Discard bool
	// Sink, if set, gets the lines instead of the json files (driver "syslog"). Lines it refuses are kept in the spool
	// and offered again.
	Sink func(stream string, line []byte, at time.Time) error
	// Logger gets faults of the disk, once per fault. Nil means slog's default.
	Logger *slog.Logger
}

// Log is the log of one container.
type Log struct {
	dir string
	o   Options

	mu      sync.Mutex
	spools  [2]*spool
	json    *os.File
	size    int64
	pos     *os.File
	gen     uint64 // number of rotations seen by this process
	changed chan struct{}
	taps    map[*Tap]struct{}
	failing bool // the last pump failed; said already
	closed  bool
}

type spool struct {
	stream  string
	file    *os.File
	offset  int64 // of the first byte not yet in the log
	tapped  int64 // of the first byte not yet given to taps
	pending []byte
}

// Open opens or makes the log in dir and continues where the last one stopped.
func Open(dir string, o Options) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "log directory %s", dir)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.MaxFiles = max(o.MaxFiles, 1)
	l := &Log{dir: dir, o: o, changed: make(chan struct{}), taps: map[*Tap]struct{}{}}
	if err := l.open(); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Unavailable, err, "log in %s", dir), l.Close())
	}
	return l, nil
}

func (l *Log) open() error {
	for i, name := range []string{stdoutFile, stderrFile} {
		f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		l.spools[i] = &spool{stream: name, file: f}
	}
	var err error
	if l.pos, err = os.OpenFile(filepath.Join(l.dir, positionFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := l.openJSON(); err != nil {
		return err
	}
	return l.restore()
}

func (l *Log) openJSON() (err error) {
	l.json, err = os.OpenFile(filepath.Join(l.dir, jsonFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	l.size, err = l.json.Seek(0, 2)
	return err
}

// restore brings the files to the last recorded position: entries after it are cut off and made again from the spool.
func (l *Log) restore() error {
	p, ok := readPosition(l.pos)
	if !ok { // a new log: from now on there is a record to fall back to
		return l.record()
	}
	for i, s := range l.spools {
		st, err := s.file.Stat()
		if err != nil {
			return err
		}
		if st.Size() >= p.offsets[i] { // smaller: truncated for a new run just before the crash
			s.offset, s.tapped = p.offsets[i], p.offsets[i]
		}
	}
	switch {
	case inode(l.json) != p.inode: // rotated just before the crash: what is in the new file is not recorded
		l.size = 0
	case p.size < l.size:
		l.size = p.size
	default:
		return nil
	}
	return l.json.Truncate(l.size)
}

func inode(f *os.File) uint64 {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	return st.Ino
}

// Spools returns the files that the container's standard output and standard error are appended to.
func (l *Log) Spools() (stdout, stderr string) {
	return filepath.Join(l.dir, stdoutFile), filepath.Join(l.dir, stderrFile)
}

// Reset empties the spools for a new run of the container. Nothing may write to them at the time.
func (l *Log) Reset() error {
	if err := l.Finish(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.spools {
		if err := s.file.Truncate(0); err != nil {
			return fault.Wrap(fault.Unavailable, err, "log in %s", l.dir)
		}
		s.offset, s.tapped, s.pending = 0, 0, nil
	}
	return l.record()
}

// Finish takes over all that is in the spools, an unfinished last line included. For after the container has ended.
func (l *Log) Finish() error { return l.pump(true) }

// Pump takes over what has been appended to the spools since the last time.
func (l *Log) Pump() error { return l.pump(false) }

func (l *Log) pump(last bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	for _, s := range l.spools {
		for more := true; more; {
			var err error
			if more, err = l.pumpSome(s, last); err != nil {
				l.complain(err)
				return err
			}
		}
	}
	l.failing = false
	return nil
}

func (l *Log) complain(err error) {
	if !l.failing {
		l.o.Logger.Error("a container's log cannot be written; its output is kept and will be taken over later",
			"directory", l.dir, "error", err)
	}
	l.failing = true
}

// pumpSome takes over one batch and says whether there may be more.
func (l *Log) pumpSome(s *spool, last bool) (bool, error) {
	start := s.offset + int64(len(s.pending))
	buf := make([]byte, 4<<10, batch)
	n, err := s.file.ReadAt(buf, start)
	if n == len(buf) { // much to read: take a large batch
		var m int
		m, err = s.file.ReadAt(buf[n:batch], start+int64(n))
		n += m
	}
	if n == 0 && !(last && len(s.pending) > 0) {
		return false, ignoreEOF(err)
	}
	fresh := buf[:n:n]
	l.tap(s, start, fresh)
	used, err := l.take(s, append(s.pending, fresh...), last && n == 0)
	return err == nil && (n > 0 || used), err
}

// take takes over data, the first of the spool that is not in the log. It leaves an unfinished line, unless it is the last, and
// says whether anything was used. After an error, all that is not in the log is read again.
func (l *Log) take(s *spool, data []byte, last bool) (used bool, err error) {
	s.pending = nil
	for rotated := true; rotated; {
		done, err := l.append(s, data, last)
		if err != nil {
			return used, err
		}
		if done == 0 {
			break
		}
		from := s.offset
		s.offset += int64(done)
		data, used = data[done:], true
		if err := l.record(); err != nil {
			return used, err
		}
		free(s.file, from, s.offset)
		l.notify()
		if rotated, err = l.rotate(); err != nil {
			return used, err
		}
	}
	s.pending = append([]byte(nil), data...)
	return used, nil
}

// append writes the whole lines of data, and the rest too if it is the last, until the file is full. It returns how many bytes
// it has used.
func (l *Log) append(s *spool, data []byte, last bool) (int, error) {
	lines, used := split(data, last)
	if used == 0 || l.o.Discard {
		return used, nil
	}
	at := l.time(s)
	if l.o.Sink != nil {
		return l.sink(s, lines, at)
	}
	var out []byte
	used = 0
	for _, line := range lines {
		out = appendEntry(out, s.stream, line, at)
		used += len(line)
		if l.full(int64(len(out))) {
			break // at the first line that ends beyond the size, as in Docker
		}
	}
	if _, err := l.json.WriteAt(out, l.size); err != nil {
		return 0, errors.Join(err, l.json.Truncate(l.size))
	}
	l.size += int64(len(out))
	return used, nil
}

func (l *Log) sink(s *spool, lines [][]byte, at time.Time) (used int, err error) {
	for _, line := range lines {
		if err := l.o.Sink(s.stream, line, at); err != nil {
			return used, nil // offered again with the next pump
		}
		used += len(line)
	}
	return used, nil
}

// time is now, or when the spool was last written if that is longer ago than a pump takes.
func (l *Log) time(s *spool) time.Time {
	now := time.Now()
	st, err := s.file.Stat()
	if err != nil || now.Sub(st.ModTime()) < time.Second || st.ModTime().After(now) {
		return now
	}
	return st.ModTime()
}

// full says whether the current file is as long as it may be with so many bytes more.
func (l *Log) full(more int64) bool { return l.o.MaxSize > 0 && l.size+more >= l.o.MaxSize }

// rotate renames the files when the current one is full: json.log to json.log.1 and so on. It says whether it was.
func (l *Log) rotate() (bool, error) {
	if !l.full(0) || l.o.Discard || l.o.Sink != nil {
		return false, nil
	}
	base := filepath.Join(l.dir, jsonFile)
	if l.o.MaxFiles == 1 {
		if err := os.Remove(base); err != nil {
			return false, err
		}
	}
	for i := l.o.MaxFiles - 1; i > 0; i-- {
		if err := os.Rename(numbered(base, i-1), numbered(base, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
	}
	old := l.json
	if err := l.openJSON(); err != nil {
		l.json = old
		return false, err
	}
	l.gen++
	return true, errors.Join(old.Close(), l.record())
}

// notify wakes those who follow. The caller holds mu.
func (l *Log) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Close closes the files. Followers are woken and end.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	l.notify()
	for t := range l.taps {
		l.dropTap(t)
	}
	var errs []error
	for _, f := range []*os.File{l.json, l.pos} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	for _, s := range l.spools {
		if s != nil {
			errs = append(errs, s.file.Close())
		}
	}
	return errors.Join(errs...)
}
