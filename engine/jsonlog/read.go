package jsonlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gantryd/gantry/fault"
)

// ReadOptions says which entries to read.
type ReadOptions struct {
	// Tail is the number of last entries to begin with; negative means all.
	Tail int
	// Since and Until bound the time of entries, zero meaning unbounded. Reading stops at the first later than Until.
	Since, Until time.Time
	// Done, if not nil, makes Read go on with entries that come later, until Done is closed and all has been read.
	Done <-chan struct{}
}

// Read calls fn for entries, oldest first. It returns when all are read, or, following, when Done or ctx ends it.
func (l *Log) Read(ctx context.Context, o ReadOptions, fn func(Entry) error) error {
	r := reader{log: l, o: o, fn: fn}
	if err := r.open(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "log in %s", l.dir)
	}
	defer r.close()
	for {
		// Order matters: ask whether the container is done before the last read, and for the signal before reading.
		done := isClosed(o.Done)
		changed, closed := l.changes()
		if err := r.readAll(ctx); err != nil || o.Done == nil || done || closed {
			return ignoreStop(err)
		}
		select {
		case <-changed:
		case <-o.Done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Log) changes() (<-chan struct{}, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed, l.closed
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return c == nil
	}
}

var errStop = errors.New("stop reading")

func ignoreStop(err error) error {
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// reader reads through the generations of a log's files by open descriptors, so that rotation does not disturb it.
type reader struct {
	log   *Log
	o     ReadOptions
	fn    func(Entry) error
	files []*os.File // oldest first; the last is being written
	gen   uint64     // rotations seen when the last of files was opened
	buf   *bufio.Reader
	part  []byte
	limit int64 // readOnce: how much of the newest file to read
}

// open opens the files that there are and places the reader at the first entry wanted.
func (r *reader) open() error {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if err := r.openFrom(r.log.o.MaxFiles - 1); err != nil {
		return err
	}
	if r.o.Tail < 0 {
		return nil
	}
	return r.seekTail()
}

// openFrom opens json.log.N for N from oldest down, and json.log itself. The caller holds the log's mu.
func (r *reader) openFrom(oldest int) error {
	base := filepath.Join(r.log.dir, jsonFile)
	for i := oldest; i >= 0; i-- {
		f, err := os.Open(numbered(base, i))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		r.files = append(r.files, f)
	}
	r.gen = r.log.gen
	return nil
}

// seekTail drops the files and skips the entries before the last Tail ones.
func (r *reader) seekTail() error {
	missing := r.o.Tail
	for i := len(r.files) - 1; i >= 0; i-- {
		at, found, err := tailOffset(r.files[i], missing)
		if err != nil {
			return err
		}
		if _, err := r.files[i].Seek(at, io.SeekStart); err != nil {
			return err
		}
		if missing -= found; missing <= 0 {
			for _, f := range r.files[:i] {
				_ = f.Close()
			}
			r.files = r.files[i:]
			return nil
		}
	}
	return nil
}

// tailOffset returns where the last n lines of f begin, and how many of them it has.
func tailOffset(f *os.File, n int) (offset int64, found int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return end, 0, err
	}
	buf := make([]byte, 64<<10)
	newlines := 0
	for at := end; at > 0; {
		size := min(at, int64(len(buf)))
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil {
			return 0, 0, err
		}
		for i := int(size) - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			if newlines == n { // the newline before the first wanted line
				return at + int64(i) + 1, n, nil
			}
			newlines++
		}
	}
	return 0, newlines, nil
}

func (r *reader) close() {
	for _, f := range r.files {
		_ = f.Close()
	}
}

// readAll reads to the end of the newest file, opening files that rotation has made since.
func (r *reader) readAll(ctx context.Context) error {
	for {
		for len(r.files) > 0 {
			if err := r.readFile(ctx); err != nil {
				return err
			}
			if len(r.files) == 1 {
				break
			}
			_ = r.files[0].Close()
			r.files, r.buf, r.part = r.files[1:], nil, nil
		}
		more, err := r.openNewer()
		if err != nil || !more {
			return err
		}
	}
}

// readOnce reads the files as they were when the reader was opened.
func (r *reader) readOnce() error {
	for i, f := range r.files {
		r.buf, r.part = bufio.NewReaderSize(f, 64<<10), nil
		if i == len(r.files)-1 {
			r.buf = bufio.NewReaderSize(io.LimitReader(f, r.limit), 64<<10)
		}
		if err := r.readFile(context.Background()); err != nil {
			return err
		}
	}
	return nil
}

// openNewer opens the files made by rotation since the newest was opened. It says false if there are none.
func (r *reader) openNewer() (bool, error) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	missed := r.log.gen - r.gen
	if missed == 0 || r.log.closed {
		return false, nil
	}
	// The current file may have got its last entries between our reading and the rotation: it stays in the list.
	return true, r.openFrom(int(min(missed-1, uint64(r.log.o.MaxFiles-1))))
}

func (r *reader) readFile(ctx context.Context) error {
	if r.buf == nil {
		r.buf = bufio.NewReaderSize(r.files[0], 64<<10)
	}
	for {
		line, err := r.buf.ReadSlice('\n')
		r.part = append(r.part, line...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil // a part of an entry stays in r.part until the rest is written
		case err != nil:
			return fault.Wrap(fault.Unavailable, err, "log in %s", r.log.dir)
		}
		if err := r.emit(ctx, r.part); err != nil {
			return err
		}
		r.part = r.part[:0]
	}
}

func (r *reader) emit(ctx context.Context, line []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := parseEntry(bytes.TrimRight(line, "\x00\n"))
	if err != nil {
		return nil // torn by a power loss: the rest of the log is worth more than this line
	}
	if !r.o.Until.IsZero() && e.Time.After(r.o.Until) {
		return errStop
	}
	if e.Time.Before(r.o.Since) {
		return nil
	}
	return r.fn(e)
}

func numbered(base string, i int) string {
	if i == 0 {
		return base
	}
	return base + "." + strconv.Itoa(i)
}
