package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
)

const (
	locateTimeout = 5 * time.Second
	// Waits for nodes that are busy or broken begin anew when one has sent much.
	muchSent            = 4 << 20 // bytes
	firstWait, lastWait = 100 * time.Millisecond, time.Second
)

// Fetcher fetches blobs from other nodes, and what none of them has, or none can send to its end, from the fallback: a registry.
func (x *Exchange) Fetcher(fallback remotes.Fetcher) remotes.Fetcher {
	return remotes.FetcherFunc(func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		return &download{
			ctx: ctx, desc: d, fallback: fallback, credited: "-",
			locator: locator{x: x, digest: d.Digest, small: d.Size <= smallBlob},
		}, nil
	})
}

// download reads one blob from a node after another.
type download struct {
	locator
	ctx      context.Context
	desc     ocispec.Descriptor
	fallback remotes.Fetcher

	at, sent int64
	body     *stream
	last     io.ReadCloser // the fallback's, once all nodes have failed
	acquired bool
	credited string // who sent the last bytes; "-" for nobody
}

// Seek moves to where an earlier try stopped. It must not be called after Read.
func (d *download) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || d.body != nil || d.last != nil {
		return 0, fault.New(fault.Internal, "peer: a download is moved only before it begins")
	}
	d.at = offset
	return offset, nil
}

// Read reads from the node at hand, and goes on with another when that fails.
func (d *download) Read(p []byte) (int, error) {
	for {
		switch {
		case d.at >= d.desc.Size:
			return 0, io.EOF
		case d.last != nil:
			n, err := d.last.Read(p)
			d.at += int64(n)
			d.x.figures.Fallback.Add(n)
			d.credit("", n)
			if err != nil && !errors.Is(err, io.EOF) {
				err = d.withCause(err)
			}
			return n, err
		case d.body == nil:
			if err := d.begin(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := d.body.Read(p[:min(int64(len(p)), d.desc.Size-d.at)])
		d.credit(d.body.peer.Node, n)
		d.advance(int64(n))
		if err != nil {
			d.leave(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// leave gives up the node at hand.
func (d *download) leave(err error) {
	if d.at < d.desc.Size {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		d.failed(d.body.peer, gantryv1.BlobFault_KIND_BROKEN, err)
	}
	d.body.close()
	d.body = nil
}

// credit notes who sent something; a registry has no name.
func (d *download) credit(node string, n int) {
	if n == 0 || d.credited == node {
		return
	}
	d.credited = node
	if f := d.x.flights.get(d.desc.Digest); f != nil {
		f.from(node)
	}
}

// advance counts what came. Only one who sends much earns the next failure a full wait.
func (d *download) advance(n int64) {
	d.at += n
	d.x.figures.Received.Add(int(n))
	if d.sent += n; d.sent >= muchSent {
		d.sent, d.waited = 0, 0
	}
}

// begin opens the blob at the next node, else at the fallback.
func (d *download) begin() error {
	if !d.acquired {
		if err := d.x.downloads.acquire(d.ctx); err != nil {
			return err
		}
		d.acquired = true
	}
	for {
		peer, err := d.next(d.ctx)
		if err != nil {
			return d.fallBack(err)
		}
		d.body, err = d.x.connect(d.ctx, peer, d.desc, d.at)
		if err == nil {
			return nil
		}
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		d.failed(peer, kindOf(err), err)
	}
}

// fallBack opens the blob where it comes from when no node has it.
func (d *download) fallBack(cause error) error {
	d.release()
	d.cause = cause
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	rc, err := d.fallback.Fetch(d.ctx, d.desc)
	if err != nil {
		return d.withCause(err)
	}
	if err := skip(rc, d.at); err != nil {
		return errors.Join(err, rc.Close())
	}
	d.last = rc
	return nil
}

// withCause adds to the fallback's error why no other node helped. Since all have failed, those that are distrusted are as good
// as any for the next try.
func (d *download) withCause(err error) error {
	d.x.distrust.forget(d.desc.Digest)
	return fmt.Errorf("%w (from other nodes: %v)", err, d.cause)
}

func skip(r io.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	if s, ok := r.(io.Seeker); ok {
		_, err := s.Seek(n, io.SeekStart)
		return err
	}
	_, err := io.CopyN(io.Discard, r, n)
	return err
}

func (d *download) release() {
	if d.acquired {
		d.x.downloads.release()
		d.acquired = false
	}
}

// Close ends the download.
func (d *download) Close() error {
	d.release()
	if d.body != nil {
		d.body.close()
	}
	if d.last != nil {
		return d.last.Close()
	}
	return nil
}

// locator asks the tracker for one node after another that has a blob.
type locator struct {
	x       *Exchange
	digest  digest.Digest
	small   bool     // not worth being sent on before it is complete
	exclude []string // nodes that failed
	retry   bool     // some of which may be asked again
	spare   []*gantryv1.BlobPeer
	fault   *gantryv1.BlobFault
	cause   error // the last failure
	waited  time.Duration
}

// failed excludes a node.
func (l *locator) failed(p *gantryv1.BlobPeer, kind gantryv1.BlobFault_Kind, err error) {
	l.x.Logger.Debug("a node did not send a blob", "node", p.Node, "digest", l.digest, "err", err)
	l.x.figures.Failures.Add(1)
	l.exclude = append(l.exclude, p.Node)
	l.retry = l.retry || kind == gantryv1.BlobFault_KIND_BROKEN || kind == gantryv1.BlobFault_KIND_BUSY
	l.fault = &gantryv1.BlobFault{Node: p.Node, Digest: l.digest.String(), Kind: kind}
	l.cause = fmt.Errorf("node %s: %w", p.Node, err)
}

// next names the next node to try. While some only failed for now, it waits a little for them.
func (l *locator) next(ctx context.Context) (*gantryv1.BlobPeer, error) {
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		p, err := l.locate(ctx)
		if p != nil {
			return p, nil
		}
		if err != nil {
			l.cause = err
		} else if !l.retry {
			return nil, l.end()
		}
		if l.waited >= l.x.Patience {
			return nil, l.end()
		}
		l.waited += wait
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		l.exclude, l.retry = nil, false
	}
}

func (l *locator) end() error {
	if l.cause == nil {
		return errMissing
	}
	return l.cause
}

// locate asks the tracker; it is nil if there is nobody to name.
func (l *locator) locate(ctx context.Context) (*gantryv1.BlobPeer, error) {
	resp, err := l.ask(ctx)
	if err != nil {
		if p := l.take(); p != nil { // it named others before
			return p, nil
		}
		return nil, err
	}
	l.fault, l.spare = nil, resp.Peers
	l.x.said.heard(resp.Tracker)
	return l.take(), nil
}

// take takes the next of those that were named, without those that failed.
func (l *locator) take() *gantryv1.BlobPeer {
	for len(l.spare) > 0 {
		p := l.spare[0]
		l.spare = l.spare[1:]
		if !slices.Contains(l.exclude, p.Node) {
			return p
		}
	}
	return nil
}

func (l *locator) ask(ctx context.Context) (*gantryv1.LocateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	req := &gantryv1.LocateRequest{
		Digest: l.digest.String(), Exclude: slices.Concat(l.exclude, l.x.distrust.of(l.digest)), Fault: l.fault, Complete: l.small,
	}
	return ask(ctx, l.x, req, gantryv1connect.NodeImageServiceClient.Locate)
}

// peerError is a refusal of a node with its kind.
type peerError struct {
	kind gantryv1.BlobFault_Kind
	text string
}

// Error says what the node did.
func (e *peerError) Error() string { return e.text }

func kindOf(err error) gantryv1.BlobFault_Kind {
	var e *peerError
	if errors.As(err, &e) {
		return e.kind
	}
	return gantryv1.BlobFault_KIND_BROKEN
}

var (
	errStalled = errors.New("it sent nothing for too long")
	errSlow    = errors.New("it sends too slowly")
)

// stream is a blob that a node sends. What is silent or too slow for too long is cut.
type stream struct {
	peer    *gantryv1.BlobPeer
	body    io.ReadCloser
	cancel  context.CancelCauseFunc
	ctx     context.Context
	stall   *time.Timer
	silence time.Duration
	x       *Exchange
	bytes   int64
	spent   time.Duration // waiting for bytes; the store's disk does not count
}

// connect asks a node for a blob from a byte on. The size it says must be the one that the manifest says.
func (x *Exchange) connect(ctx context.Context, p *gantryv1.BlobPeer, desc ocispec.Descriptor, at int64) (*stream, error) {
	// One that is still fetching is as silent as those it fetches from, until they are left; that takes their time.
	silence := x.Stall * time.Duration(1+max(p.Depth, 0))
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stream{peer: p, ctx: ctx, cancel: cancel, silence: silence, x: x}
	s.stall = time.AfterFunc(silence, func() { cancel(errStalled) })
	resp, err := x.get(ctx, p.Address, desc.Digest, at)
	s.stall.Stop()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	s.body = resp.Body
	if err := checkAnswer(resp, at, desc.Size); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// get asks a node. A node sends what it has itself: it redirects to nobody.
func (x *Exchange) get(ctx context.Context, address string, d digest.Digest, at int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, x.Scheme+"://"+address+Path+d.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", "bytes="+strconv.FormatInt(at, 10)+"-")
	req.Header.Set("Accept-Encoding", "identity")
	c := *x.Client(address)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c.Do(req)
}

// checkAnswer holds an answer against what was asked for. A size below zero is any.
func checkAnswer(resp *http.Response, at, size int64) error {
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return &peerError{gantryv1.BlobFault_KIND_MISSING, "it does not have the blob"}
	case resp.StatusCode == http.StatusServiceUnavailable:
		return &peerError{gantryv1.BlobFault_KIND_BUSY, "it sends to too many others"}
	case at == 0 && resp.StatusCode == http.StatusOK:
		if size >= 0 && resp.ContentLength != size {
			return &peerError{gantryv1.BlobFault_KIND_CORRUPT, fmt.Sprintf("its blob is %d bytes, not %d", resp.ContentLength, size)}
		}
		return nil
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return &peerError{gantryv1.BlobFault_KIND_CORRUPT, "its blob is shorter than it should be"}
	case resp.StatusCode != http.StatusPartialContent:
		return &peerError{gantryv1.BlobFault_KIND_BROKEN, "it answers " + resp.Status}
	}
	if want := fmt.Sprintf("bytes %d-%d/%d", at, size-1, size); resp.Header.Get("Content-Range") != want {
		return &peerError{gantryv1.BlobFault_KIND_CORRUPT, fmt.Sprintf("it sends %.60q, not %q", resp.Header.Get("Content-Range"), want)}
	}
	return nil
}

// Read reads what the node sends.
func (s *stream) Read(p []byte) (int, error) {
	start := time.Now()
	s.stall.Reset(s.silence)
	n, err := s.body.Read(p)
	s.stall.Stop()
	s.bytes += int64(n)
	s.spent += time.Since(start)
	if cause := context.Cause(s.ctx); cause != nil && err != nil {
		err = cause
	}
	if err == nil && s.spent > s.x.RateAfter && float64(s.bytes) < float64(s.x.MinRate)*s.spent.Seconds() {
		err = errSlow
	}
	return n, err
}

func (s *stream) close() {
	s.stall.Stop()
	s.cancel(nil)
	if s.body != nil {
		_ = s.body.Close()
	}
}

// Document fetches a small blob of unknown size from another node. If none has it the error is a fault.NotFound.
func (x *Exchange) Document(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	l := locator{x: x, digest: d, small: true}
	for {
		p, err := l.next(ctx)
		if err != nil {
			return nil, documentError(d, err)
		}
		body, err := x.document(ctx, p, d, limit)
		if err == nil {
			return body, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		l.failed(p, kindOf(err), err)
	}
}

func documentError(d digest.Digest, err error) error {
	kind := fault.Unavailable
	if errors.Is(err, errMissing) {
		kind = fault.NotFound
	}
	return fault.Wrap(kind, err, "fetch %s from other nodes", d)
}

func (x *Exchange) document(ctx context.Context, p *gantryv1.BlobPeer, d digest.Digest, limit int64) ([]byte, error) {
	s, err := x.connect(ctx, p, ocispec.Descriptor{Digest: d, Size: -1}, 0)
	if err != nil {
		return nil, err
	}
	defer s.close()
	body, err := io.ReadAll(io.LimitReader(s, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit || d.Algorithm().FromBytes(body) != d {
		return nil, &peerError{gantryv1.BlobFault_KIND_CORRUPT, "what it sends is not what the digest says"}
	}
	return body, nil
}
