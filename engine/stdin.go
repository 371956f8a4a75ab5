package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// stdin is the writing end of a container's standard input.
type stdin struct {
	mu     sync.Mutex
	file   *os.File
	closed bool
}

func (s *stdin) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		_ = s.file.Close()
	}
	s.file, s.closed = nil, true
}

// open opens the fifo when somebody first writes. Opened for both directions it does not wait for the shim.
func (s *stdin) open(path string) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	if s.file == nil {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		s.file = f
	}
	return s.file, nil
}

func (e *Engine) stdinPath(id string) string { return filepath.Join(e.o.Run, "stdin", id) }

// prepareStdin makes a fresh fifo: what was written to an earlier run is not for this one.
func (e *Engine) prepareStdin(c *container, r *run) error {
	if !c.Stdin {
		r.stdin.closed = true
		return nil
	}
	path := e.stdinPath(c.ID)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.Wrap(diskFault(err), err, "container %s: standard input", c.ID)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(diskFault(err), err, "container %s: standard input", c.ID)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fault.Wrap(diskFault(err), err, "container %s: standard input", c.ID)
	}
	return nil
}

// closeStdin tells the container that no more input comes.
func (e *Engine) closeStdin(ctx context.Context, c *container, r *run) error {
	r.stdin.close()
	_, err := e.client.TaskService().CloseIO(ctx, &tasks.CloseIORequest{ContainerID: c.ID, Stdin: true})
	return err
}
