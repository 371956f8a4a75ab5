package peer

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
)

const (
	// beatEvery is how often the tracker hears of this node, so that another one knows soon what it has.
	beatEvery = 15 * time.Second
	// A scan finds what others wrote to or took from the store, every four beats; every forty, all is told again.
	beatsToScan, beatsToAll = 4, 40
	announceTimeout         = 10 * time.Second
	announceRetry           = time.Second
)

// scope is how much an announcement looks at.
type scope int

const (
	changes scope = iota // what was noted
	scan                 // what the stores have, in comparison with what was told
	all                  // what the stores have
)

// ledger is what the tracker has been told, and what it is to be told.
type ledger struct {
	mu      sync.Mutex
	pending map[string]bool // by digest: it came, or went
	faults  []*gantryv1.BlobFault
	scope   scope
	tracker string // whom all of it was told

	sending semaphore // of one; guards the rest
	has     map[string]bool
	names   map[string]string // digest by name
	images  map[string]bool   // digests of whole images

	wake chan struct{}
}

func newLedger() ledger {
	return ledger{
		pending: map[string]bool{}, has: map[string]bool{}, names: map[string]string{}, images: map[string]bool{},
		sending: make(semaphore, 1), wake: make(chan struct{}, 1),
	}
}

func (l *ledger) note(d digest.Digest, has bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending[d.String()] = has
	l.poke()
}

func (l *ledger) accuse(d digest.Digest, node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, &gantryv1.BlobFault{Node: node, Digest: d.String(), Kind: gantryv1.BlobFault_KIND_CORRUPT})
	l.poke()
}

func (l *ledger) want(s scope) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.scope = max(l.scope, s)
	l.poke()
}

// heard notes which tracker answered. One that was told nothing yet is told all.
func (l *ledger) heard(tracker string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if tracker != l.tracker {
		l.scope = all
		l.poke()
	}
}

func (l *ledger) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Changed has the tracker told soon of what others wrote to the stores or removed.
func (x *Exchange) Changed() { x.said.want(scan) }

// Run keeps the tracker told of what this node has until ctx ends.
func (x *Exchange) Run(ctx context.Context) error {
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	retry := time.NewTimer(announceRetry)
	defer retry.Stop()
	x.said.want(all)
	for beats := 1; ; {
		select {
		case <-x.said.wake:
		case <-retry.C:
		case <-beat.C:
			beats++
			if beats%beatsToScan == 0 {
				x.said.want(scan)
			}
			if beats%beatsToAll == 0 {
				x.said.want(all)
			}
		case <-ctx.Done():
			return nil
		}
		if err := x.Announce(ctx); err != nil && ctx.Err() == nil {
			x.Logger.Debug("the tracker of images was not told, trying again", "err", err)
			retry.Reset(announceRetry)
		}
	}
}

// Announce tells the tracker what there is to tell and returns once it knows.
func (x *Exchange) Announce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(x.in(ctx), announceTimeout)
	defer cancel()
	if err := x.said.sending.acquire(ctx); err != nil {
		return err
	}
	defer x.said.sending.release()
	for {
		req, now, err := x.compose(ctx)
		if err != nil {
			return err
		}
		resp, err := ask(ctx, x, req, gantryv1connect.NodeImageServiceClient.Announce)
		if err != nil {
			x.said.putBack(req)
			return err
		}
		x.said.has, x.said.names, x.said.images = now.has, now.names, now.images
		if x.said.told(resp.Tracker, req.Full) {
			return nil
		}
	}
}

// told notes that an announcement arrived, and reports whether the tracker knows all of this node by now.
func (l *ledger) told(tracker string, full bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if full {
		l.tracker = tracker
	}
	if tracker == l.tracker {
		return true
	}
	l.scope = all
	return false
}

// take empties what is to be told.
func (l *ledger) take() (pending map[string]bool, faults []*gantryv1.BlobFault, s scope) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pending, faults, s = l.pending, l.faults, l.scope
	l.pending, l.faults, l.scope = map[string]bool{}, nil, changes
	return pending, faults, s
}

// putBack returns what could not be told, unless something newer is there.
func (l *ledger) putBack(req *gantryv1.AnnounceRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for digests, has := range map[*[]string]bool{&req.Have: true, &req.Gone: false} {
		for _, d := range *digests {
			if _, newer := l.pending[d]; !newer {
				l.pending[d] = has
			}
		}
	}
	l.faults = append(req.Faults, l.faults...)
	if req.Full {
		l.scope = all
	} else if len(req.Names)+len(req.NamesGone)+len(req.Images)+len(req.ImagesGone) > 0 {
		l.scope = max(l.scope, scan)
	}
}

// seen is what the tracker knows after an announcement.
type seen struct {
	has    map[string]bool
	names  map[string]string
	images map[string]bool
}

// compose makes an announcement, and what the tracker knows after it.
func (x *Exchange) compose(ctx context.Context) (req *gantryv1.AnnounceRequest, now seen, err error) {
	pending, faults, s := x.said.take()
	req = &gantryv1.AnnounceRequest{Boot: x.boot, Faults: faults, Full: s == all}
	now = seen{x.said.has, x.said.names, x.said.images}
	if s != changes {
		if now, err = x.look(ctx, req); err != nil {
			x.said.putBack(&gantryv1.AnnounceRequest{Full: true, Faults: faults})
			return nil, seen{}, err
		}
	}
	for d, came := range pending {
		switch {
		case came: // it may have been told of in vain
			now.has[d] = true
			req.Have = append(req.Have, d)
		case s == changes || !now.has[d]:
			delete(now.has, d)
			req.Gone = append(req.Gone, d)
		}
	}
	return req, now, nil
}

// look reads the stores and puts into an announcement what the tracker does not know.
func (x *Exchange) look(ctx context.Context, req *gantryv1.AnnounceRequest) (now seen, err error) {
	now = seen{map[string]bool{}, map[string]string{}, map[string]bool{}}
	if err := x.stores.Content.Walk(ctx, func(i content.Info) error {
		now.has[i.Digest.String()] = true
		return nil
	}); err != nil {
		return seen{}, err
	}
	recs, err := x.stores.Images.List(ctx)
	if err != nil {
		return seen{}, err
	}
	for _, r := range recs {
		d := r.Target.Digest.String()
		now.images[d] = true // it is recorded once all of it is stored
		if strings.Contains(r.Name, "@") || strings.HasPrefix(r.Name, "sha256:") {
			continue // no name but a digest
		}
		now.names[r.Name] = d
		if req.Full || x.said.names[r.Name] != d {
			req.Names = append(req.Names, &gantryv1.ImageName{Name: r.Name, Digest: d, UpdatedAt: timestamppb.New(r.UpdatedAt)})
		}
	}
	if req.Full {
		req.Have, req.Images = slices.Collect(maps.Keys(now.has)), slices.Collect(maps.Keys(now.images))
		return now, nil
	}
	req.Have, req.Gone = difference(now.has, x.said.has), difference(x.said.has, now.has)
	req.Images, req.ImagesGone = difference(now.images, x.said.images), difference(x.said.images, now.images)
	for n := range x.said.names {
		if now.names[n] == "" {
			req.NamesGone = append(req.NamesGone, n)
		}
	}
	return now, nil
}

// difference lists what is in a and not in b.
func difference(a, b map[string]bool) (out []string) {
	for k := range a {
		if !b[k] {
			out = append(out, k)
		}
	}
	return out
}

// FindName returns the digest that an image's full name stands for on the servers, or on any node; empty if nobody knows it.
func (x *Exchange) FindName(ctx context.Context, name string, any bool) (digest.Digest, error) {
	resp, err := ask(ctx, x, &gantryv1.FindNameRequest{Name: name, Any: any}, gantryv1connect.NodeImageServiceClient.FindName)
	if err != nil || resp.Digest == "" {
		return "", err
	}
	d := digest.Digest(resp.Digest)
	return d, d.Validate()
}
