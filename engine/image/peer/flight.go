package peer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// flights are the blobs that are being written now.
type flights struct {
	mu  sync.Mutex
	all map[digest.Digest]*flight
}

func (s *flights) get(d digest.Digest) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[d]
}

func (s *flights) begin(d digest.Digest, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[digest.Digest]*flight{}
	}
	s.all[d] = f
}

func (s *flights) end(d digest.Digest, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[d] == f {
		delete(s.all, d)
	}
}

// errAborted is what readers of a flight see that came to nothing.
var errAborted = errors.New("the download that was sent on came to nothing")

// flight is one blob on its way into the store. It is read, as far as it has come, from the store's own file.
type flight struct {
	root, namespace, ref string // the store's directory, and the write's name in it
	size                 int64

	mu      sync.Mutex
	file    *os.File // opened for the first reader, closed with the flight and its last reader
	readers int
	at      int64
	over    bool
	err     error         // why it came to nothing
	moved   chan struct{} // closed when the flight moves on; nil while nobody waits
	sources []string      // nodes that sent a part of it, in this order
	resumed bool          // an earlier try left a part
}

// join opens the file for one more reader, who must leave.
func (f *flight) join() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.root == "" {
		return errAborted
	}
	if f.file == nil {
		file, err := openIngest(f.root, f.namespace, f.ref)
		if err != nil {
			return err
		}
		f.file = file
	}
	f.readers++
	return nil
}

func (f *flight) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	f.tidy()
}

// tidy closes the file once nobody needs it.
func (f *flight) tidy() {
	if f.over && f.readers == 0 && f.file != nil {
		_ = f.file.Close()
		f.file = nil
	}
}

// openIngest finds the file that containerd's store writes a blob to. Its directory is named by a hash; a file in it has the
// ref as the metadata store makes it: namespace/number/ref. The highest number is the latest.
func openIngest(root, namespace, ref string) (*os.File, error) {
	refs, err := filepath.Glob(filepath.Join(root, "ingest", "*", "ref"))
	if err != nil {
		return nil, err
	}
	var best string
	latest := uint64(0)
	for _, path := range refs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		text, ours := strings.CutPrefix(string(b), namespace+"/")
		number, theirs, _ := strings.Cut(text, "/")
		if n, err := strconv.ParseUint(number, 10, 64); ours && err == nil && theirs == ref && n >= latest {
			best, latest = filepath.Dir(path), n
		}
	}
	if best == "" {
		return nil, os.ErrNotExist
	}
	return os.Open(filepath.Join(best, "data"))
}

// ReadAt is part of source. It is called for what await said is there.
func (f *flight) ReadAt(p []byte, off int64) (int, error) { return f.file.ReadAt(p, off) }

// await waits until there is more than off, and returns how much there is.
func (f *flight) await(ctx context.Context, off int64) (at int64, err error) {
	err = f.until(ctx, func() (bool, error) {
		at = f.at
		if f.over && f.err == nil && at <= off {
			return false, errAborted
		}
		return at > off, f.err
	})
	return at, err
}

// landed waits until the flight is over, whatever came of it.
func (f *flight) landed(ctx context.Context) error {
	return f.until(ctx, func() (bool, error) { return f.over, nil })
}

// until waits for something that is looked at each time the flight moves on.
func (f *flight) until(ctx context.Context, look func() (done bool, err error)) error {
	for {
		f.mu.Lock()
		done, err := look()
		if f.moved == nil {
			f.moved = make(chan struct{})
		}
		moved := f.moved
		f.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (f *flight) advance(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at += n
	f.wake()
}

func (f *flight) finish(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	f.over, f.err = true, err
	f.wake()
	f.tidy()
}

func (f *flight) wake() {
	if f.moved != nil {
		close(f.moved)
		f.moved = nil
	}
}

func (f *flight) from(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sources {
		if s == node {
			return
		}
	}
	f.sources = append(f.sources, node)
}

// suspects names who sent something wrong: for sure if one node sent all of it. Of several, those are tried last that did not
// come to the end. Of a part from an earlier try nobody knows any more.
func (f *flight) suspects() (nodes []string, sure bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch n := len(f.sources); {
	case f.resumed || n == 0:
		return nil, false
	case n == 1:
		return f.sources, true
	default:
		return f.sources[:n-1], false
	}
}

// Ingester is the content store for a pull: what is written through it is sent on while it arrives, and the tracker is told.
func (x *Exchange) Ingester() content.Ingester { return ingester{x} }

type ingester struct{ x *Exchange }

// Writer implements content.Ingester.
func (i ingester) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := i.x.stores.Content.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	if o.Desc.Digest == "" || o.Desc.Size <= 0 {
		return w, nil
	}
	st, err := w.Status()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	f := &flight{
		root: i.x.ContentRoot, namespace: i.x.stores.Namespace, ref: o.Ref,
		size: o.Desc.Size, at: st.Offset, resumed: st.Offset > 0,
	}
	i.x.flights.begin(o.Desc.Digest, f)
	return &flightWriter{Writer: w, x: i.x, digest: o.Desc.Digest, flight: f}, nil
}

// flightWriter tells how far a write has come.
type flightWriter struct {
	content.Writer
	x      *Exchange
	digest digest.Digest
	flight *flight
}

// Write writes and tells of it.
func (w *flightWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.flight.advance(int64(n))
	return n, err
}

// Truncate begins anew, so that nothing that was sent on holds any more.
func (w *flightWriter) Truncate(size int64) error {
	w.land(errAborted)
	return w.Writer.Truncate(size)
}

// Commit ends the write. If the bytes are not what they should be, others are asked next time.
func (w *flightWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	switch {
	case err == nil || errdefs.IsAlreadyExists(err):
		w.land(nil)
		w.x.distrust.forget(w.digest)
		w.x.said.note(w.digest, true)
	case errdefs.IsFailedPrecondition(err):
		w.x.figures.Corrupt.Add(1)
		nodes, sure := w.flight.suspects()
		w.x.Logger.Warn("a blob is not what its digest says", "digest", w.digest, "from", nodes, "sure", sure)
		w.x.distrust.add(w.digest, nodes)
		if sure {
			w.x.said.accuse(w.digest, nodes[0])
		}
	}
	return err
}

// Close ends a write that was not committed.
func (w *flightWriter) Close() error {
	if w.land(errAborted) {
		w.x.said.note(w.digest, false)
	}
	return w.Writer.Close()
}

// land ends the flight and reports that it was not over before. What is committed can be found in the store by then.
func (w *flightWriter) land(err error) bool {
	w.flight.mu.Lock()
	first := !w.flight.over
	w.flight.mu.Unlock()
	w.flight.finish(err)
	w.x.flights.end(w.digest, w.flight)
	return first
}
