package jsonlog

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// Event says what happened to a watched spool.
type Event struct {
	Grown  bool
	Closed bool // its writer has closed it: the container's side of the stream has ended
}

// Watcher tells when files grow, for any number of files with one descriptor.
type Watcher struct {
	file *os.File
	fd   int // of file, whose own Fd would make it blocking
	mu   sync.Mutex
	subs map[int32]func(Event)
	// closed guards fd, whose number may belong to another file after Run.
	closed bool
}

// NewWatcher makes a watcher. Run must be called for it to tell anything.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fault.Wrap(fault.Exhausted, err, "no inotify instance left").
			WithHint("sysctl -w fs.inotify.max_user_instances=1024")
	}
	return &Watcher{file: os.NewFile(uintptr(fd), "inotify"), fd: fd, subs: map[int32]func(Event){}}, nil
}

// Watch calls fn, from Run's goroutine, whenever the file at path changes. The returned function ends it.
func (w *Watcher) Watch(path string, fn func(Event)) (stop func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, fault.New(fault.Canceled, "watch %s: the engine is closing", path)
	}
	wd, err := unix.InotifyAddWatch(w.fd, path, unix.IN_MODIFY|unix.IN_CLOSE_WRITE)
	if err != nil {
		return nil, fault.Wrap(fault.Exhausted, err, "watch %s", path).WithHint("sysctl -w fs.inotify.max_user_watches=1048576")
	}
	w.subs[int32(wd)] = fn
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, ok := w.subs[int32(wd)]; !ok || w.closed {
			return
		}
		delete(w.subs, int32(wd))
		_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
	}, nil
}

// Run hands out events until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, w.close)
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fault.Wrap(fault.Internal, err, "inotify")
		}
		w.dispatch(buf[:n])
	}
}

func (w *Watcher) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	_ = w.file.Close()
}

func (w *Watcher) dispatch(buf []byte) {
	events := map[int32]Event{}
	for len(buf) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(buf))
		mask := binary.NativeEndian.Uint32(buf[4:])
		e := events[wd]
		e.Grown = true
		e.Closed = e.Closed || mask&unix.IN_CLOSE_WRITE != 0
		events[wd] = e
		buf = buf[unix.SizeofInotifyEvent+binary.NativeEndian.Uint32(buf[12:]):]
	}
	if _, overflow := events[-1]; overflow { // the kernel dropped events: everything may have grown
		events = w.all()
	}
	for wd, e := range events {
		w.mu.Lock()
		fn := w.subs[wd]
		w.mu.Unlock()
		if fn != nil {
			fn(e)
		}
	}
}

func (w *Watcher) all() map[int32]Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := map[int32]Event{}
	for wd := range w.subs {
		events[wd] = Event{Grown: true}
	}
	return events
}
