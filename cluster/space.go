package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/prealloc"
)

// What etcd cannot write ends it in the middle, with its locks held. Two files matter. That of its database is sparse and grows
// by 16 MB at once: it is the first that a full disk hits, so it is allocated in advance here. Its log is allocated by etcd,
// 64 MB at once, and the next 64 MB when these are begun. A member whose room runs out is stopped before it is at the end.
const (
	ahead    = 64 << 20 // bytes that the database can grow by on a disk that is full
	least    = 32 << 20 // with less it is stopped
	beyond   = 16 << 20 // bytes that the last file of the log may have beyond its 64 MB
	logFull  = 48 << 20 // bytes in the last file of the log with which it is stopped, if the log has no room
	roomLook = 200 * time.Millisecond
)

// Space tells whether the file system under the state has room. Use NewSpace; methods are safe in parallel.
type Space struct {
	dir string

	mu    sync.Mutex
	short bool
}

// Left is what is free on a file system.
type Left struct {
	Bytes, Files int64
	// Short is set from the moment there is too little until there is clearly enough again.
	Short bool
}

const (
	// A log file of etcd has 64 MB, and the next one is made when one is begun.
	shortBytes, enoughBytes = 128 << 20, 160 << 20
	shortFiles, enoughFiles = 64, 128
)

// NewSpace watches the file system that a directory is on.
func NewSpace(dir string) *Space { return &Space{dir: dir} }

// Left looks now. What cannot be looked at is not short.
func (s *Space) Left() Left {
	l, err := left(s.dir)
	if err != nil {
		return Left{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.short = l.short(s.short)
	l.Short = s.short
	return l
}

func (l Left) short(before bool) bool {
	if before {
		return l.Bytes < enoughBytes || l.Files < enoughFiles
	}
	return l.Bytes < shortBytes || l.Files < shortFiles
}

// left asks the kernel. Some file systems have as many files as there is space.
func left(dir string) (Left, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return Left{}, fault.Wrap(fault.Unavailable, err, "cannot look how much of the disk under %s is free", dir)
	}
	l := Left{Bytes: int64(st.Bavail) * st.Bsize, Files: int64(st.Ffree)}
	if st.Files == 0 {
		l.Files = enoughFiles
	}
	if st.Blocks == 0 { // it does not tell, as some file systems in user space
		l.Bytes = enoughBytes
	}
	return l, nil
}

// errFull is that etcd's log has come to its end and has no next file.
var errFull = errors.New("the log cannot grow")

func (o Options) db() string { return filepath.Join(o.Root, "member", "snap", "db") }

// room makes sure that a member which begins can write. It returns to which size its database can grow for certain.
func (o Options) room() (int64, error) {
	reserved, err := prealloc.Ahead(o.db(), least, ahead)
	switch {
	case err == nil:
		return reserved, nil
	case !errors.Is(err, os.ErrNotExist):
		return 0, full(o.Root, err)
	}
	if err := os.MkdirAll(o.Root, 0o700); err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "cannot make the directory %s for the state", o.Root)
	}
	if l, err := left(o.Root); err != nil || l.short(true) {
		return 0, full(o.Root, err)
	}
	return 0, nil
}

// full is why a member has no room: the disk is full, or it cannot be written at all.
func full(dir string, err error) error {
	if err != nil && !errors.Is(err, errFull) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return fault.Wrap(fault.Unavailable, err, "the state under %s cannot be written", dir).WithHint("look at the disk: dmesg; mount; df -h %s", dir)
	}
	return fault.Wrap(fault.Exhausted, err, "the disk under the state is full").WithHint("make room on it: df -h %s; df -i %s", dir, dir)
}

// KeepRoom keeps the database's file allocated in advance until ctx ends. It returns a fault when that has not been possible
// for so long, on a disk that is full, that the member has to be stopped.
func (m *Member) KeepRoom(ctx context.Context) error {
	look := time.NewTicker(roomLook)
	defer look.Stop()
	for {
		if err := m.keepRoom(); err != nil {
			return full(filepath.Dir(m.db), err)
		}
		if err := m.logRoom(); err != nil {
			return full(filepath.Dir(m.db), err)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *Member) keepRoom() error {
	info, err := os.Stat(m.db)
	if err != nil {
		return err
	}
	if m.dbFile == nil || !os.SameFile(info, m.dbFile) { // a snapshot of the leader has taken its place
		m.dbFile, m.reserved = info, 0
	}
	if info.Size()+ahead <= m.reserved {
		return nil
	}
	reserved, err := prealloc.Ahead(m.db, least, ahead)
	if err == nil {
		m.reserved = reserved
	}
	if info.Size()+least <= m.reserved {
		return nil
	}
	return err
}

// logRoom looks whether the log has a next file and room beyond the end of its last one, which is where a change ends with
// which etcd begins the next; or else much room in the last one. etcd tries to make the next file once only.
func (m *Member) logRoom() error {
	dir := filepath.Join(filepath.Dir(filepath.Dir(m.db)), "wal")
	files, err := os.ReadDir(dir) // sorted
	if err != nil {
		return err
	}
	last, next := "", false
	for _, f := range files {
		next = next || filepath.Ext(f.Name()) == ".tmp"
		if filepath.Ext(f.Name()) == ".wal" {
			last = filepath.Join(dir, f.Name())
		}
	}
	if last != m.log {
		if _, err = prealloc.Ahead(last, beyond, beyond); err == nil {
			m.log = last
		}
	}
	if next && last == m.log {
		return nil
	}
	used, seen := usedBytes(last)
	if seen == nil && used < logFull {
		return nil
	}
	if err == nil && seen == nil {
		err = errFull
	}
	return errors.Join(err, seen)
}

// usedBytes is where the zeros at the end of a file begin, to a megabyte.
func usedBytes(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	block, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for end := size; end > 0; end -= int64(len(block)) {
		n, err := f.ReadAt(block[:min(int64(len(block)), end)], max(0, end-int64(len(block))))
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			return end, nil
		}
	}
	return 0, nil
}
