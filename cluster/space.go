package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/prealloc"
)

// etcd ends when it cannot write. Its log has room for 64 to 128 MB, which it allocates in advance; the file of its database is
// sparse, and grows by 16 MB. So it is the database that a full disk hits first, and its file is allocated in advance here.
const (
	ahead    = 32 << 20 // bytes that the database can grow by on a disk that is full
	step     = 16 << 20 // it grows by this at once
	roomLook = 250 * time.Millisecond
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
	return l, nil
}

func (o Options) db() string { return filepath.Join(o.Root, "member", "snap", "db") }

// room makes sure that a member which begins can write. It returns to which size its database can grow for certain.
func (o Options) room() (int64, error) {
	reserved, err := prealloc.Ahead(o.db(), step, ahead)
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

func full(dir string, err error) error {
	return fault.Wrap(fault.Exhausted, err, "the disk under the state is full").WithHint("make room on it: df -h %s; df -i %s", dir, dir)
}

// KeepRoom keeps the database's file allocated in advance until ctx ends. It returns a fault when that has not been possible
// for so long that the member has to be stopped, or the next change could end it in the middle of a write.
func (m *Member) KeepRoom(ctx context.Context) error {
	look := time.NewTicker(roomLook)
	defer look.Stop()
	for {
		info, err := os.Stat(m.db)
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "the file of the state cannot be looked at")
		}
		if info.Size()+ahead > m.reserved {
			if reserved, err := prealloc.Ahead(m.db, step, ahead); err == nil {
				m.reserved = reserved
			} else if info.Size()+step > m.reserved {
				return full(filepath.Dir(m.db), err)
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
	}
}
