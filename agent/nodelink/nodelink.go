// Package nodelink is a node's side of its session with the server that leads: the one stream that brings what is assigned
// to the node and takes what it observes.
//
// New, then Run. Hello and Take are called by Run's goroutine, Status also by another; the Outbox is safe in parallel. The
// package knows nothing of containers: the agent and the simulated nodes of test/sim use it alike.
package nodelink

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/internal/silence"
)

// Options says how a node speaks.
type Options struct {
	// Server opens sessions. Every call may go to another server: one that does not lead refuses, and the next is tried. It may
	// be a Guide too.
	Server gantryv1connect.NodeSessionServiceClient
	// Hello tells a server everything: which node this is and how each of its instances is.
	Hello func() *gantryv1.NodeReport
	// Status is how the node is now, for its heartbeats.
	Status func() *gantryv1.NodeStatus
	// Take acts on an update. It is whole: its parts are put together, and endpoints are never differences.
	Take func(context.Context, *gantryv1.NodeUpdate)
	// Refused is called when a server says that the node does not belong to the cluster. May be nil.
	Refused func(error)
	// Lost is called when a session has ended that a server had taken, with the connection or otherwise. May be nil.
	Lost   func()
	Outbox *Outbox
	Logger *slog.Logger
}

// Guide is a Server that can be told by one server which other leads.
type Guide interface {
	// Refer is called with the hint of a refusal: the address of the server that leads, if the one that refuses knows it.
	Refer(hint string)
}

// Link keeps a session. Use New.
type Link struct {
	o     Options
	times atomic.Pointer[silence.Times] // as the cluster says
	paced chan struct{}                 // has one when the times have changed
}

// New makes a link.
func New(o Options) *Link {
	l, times := &Link{o: o, paced: make(chan struct{}, 1)}, silence.After(0, 0)
	l.times.Store(&times)
	return l
}

// Times of a session; others are the cluster's.
const (
	// A server answers at once or it is frozen, or has too much to do: then each try in a row waits longer.
	answerWait     = 2 * time.Second
	moreAnswerWait = time.Second
	lastAnswerWait = 6 * time.Second
	firstWait      = 20 * time.Millisecond
	lastWait       = 500 * time.Millisecond
	// Reports go at once, but for a node that has sent reportBurst of them faster than one in reportPause.
	reportPause = 20 * time.Millisecond
	reportBurst = 20
)

// Run keeps a session for as long as ctx lives. Without one the node goes on with what it knows.
func (l *Link) Run(ctx context.Context) error {
	mute := 0 // tries in a row that no server has answered
	for failures := 0; ctx.Err() == nil; failures++ {
		heard, err := l.session(ctx, min(answerWait+time.Duration(mute)*moreAnswerWait, lastAnswerWait))
		if ctx.Err() != nil {
			return nil
		}
		if mute++; heard || !fault.Is(err, fault.Timeout) {
			mute = 0
		}
		if heard {
			failures = 0
			if l.o.Lost != nil {
				l.o.Lost()
			}
		}
		l.complain(failures, err)
		if g, ok := l.o.Server.(Guide); ok && fault.Is(err, fault.Unavailable) {
			g.Refer(fault.HintOf(err))
		}
		if fault.Is(err, fault.Denied) && l.o.Refused != nil {
			l.o.Refused(err)
		}
		select {
		case <-time.After(backoff(failures)):
		case <-ctx.Done():
		}
	}
	return nil
}

// complain logs what is new: with several servers the first tries often meet one that does not lead.
func (l *Link) complain(failures int, err error) {
	level := slog.LevelWarn
	if failures%10 != 4 && fault.Is(err, fault.Unavailable) {
		level = slog.LevelDebug
	}
	l.o.Logger.Log(context.Background(), level, "no session with a server, trying again", "err", err, "hint", fault.HintOf(err))
}

// backoff grows with the failures in a row; chance keeps many nodes from coming back at the same moment.
func backoff(failures int) time.Duration {
	most := min(firstWait<<min(failures, 10), lastWait)
	return most/2 + rand.N(most/2+1)
}

type stream = connect.BidiStreamForClient[gantryv1.NodeReport, gantryv1.NodeUpdate]

// session is one session with a server that has so long to answer; heard tells whether it took it.
func (l *Link) session(ctx context.Context, wait time.Duration) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := func(of time.Duration) *time.Timer {
		return time.AfterFunc(of, func() { cancel(fault.New(fault.Timeout, "the server said nothing for %s", of)) })
	}
	silent := limit(wait)
	defer func() { silent.Stop() }()
	stream := l.o.Server.Session(ctx)
	// While the request's body is open, the transport does not notice that ctx has ended.
	stop := context.AfterFunc(ctx, func() { _ = stream.CloseRequest() })
	defer stop()
	l.o.Outbox.take() // all of it is in what follows, but removals: the server sees those by what is missing
	if err := stream.Send(l.o.Hello()); err != nil {
		return false, why(ctx, receiveError(stream, err))
	}
	failed := make(chan error, 1)
	go func() {
		err := l.report(ctx, stream.Send)
		failed <- err
		if err != nil {
			cancel(err)
		}
	}()
	in := newInbox()
	for {
		u, err := stream.Receive()
		if err != nil {
			err = why(ctx, wire.Decode(err))
			cancel(err)
			<-failed
			return heard, err
		}
		heard = true
		silent.Stop()
		if whole := in.add(u); whole != nil {
			l.learn(whole.Cluster)
			l.o.Take(ctx, whole)
		}
		silent = limit(l.times.Load().Patience)
	}
}

// learn takes the times from what a server has told of the cluster, if it has.
func (l *Link) learn(c *gantryv1.Cluster) {
	times := silence.After(c.GetSuspectAfter().AsDuration(), c.GetDownAfter().AsDuration())
	if c == nil || times == *l.times.Load() {
		return
	}
	l.times.Store(&times)
	select {
	case l.paced <- struct{}{}:
	default:
	}
}

// receiveError is why a stream took nothing: the server's own words, if there are any.
func receiveError(s *stream, err error) error {
	if _, why := s.Receive(); why != nil {
		return wire.Decode(why)
	}
	return err
}

// why prefers the cause that ended a session over the error it ended with.
func why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// report sends what the outbox collects, and heartbeats.
func (l *Link) report(ctx context.Context, send func(*gantryv1.NodeReport) error) error {
	beat := time.NewTicker(l.times.Load().Beat)
	defer beat.Stop()
	var p pacer
	for {
		alive := false
		select {
		case <-l.o.Outbox.wake:
			if !p.wait(ctx) {
				return nil
			}
			r := l.o.Outbox.take()
			if err := send(r); err != nil {
				l.o.Outbox.putBack(r)
				return err
			}
		case <-beat.C:
			alive = true
		case <-l.paced:
			beat.Reset(l.times.Load().Beat)
			alive = true // the server may go by shorter times already
		case <-ctx.Done():
			return nil
		}
		if !alive {
			continue
		}
		if err := send(&gantryv1.NodeReport{Status: l.o.Status()}); err != nil {
			return err
		}
	}
}

// pacer lets a burst through and spreads what comes after it.
type pacer struct {
	due time.Time // when the next report would be sent if they were evenly spread
}

// wait returns false when ctx has ended.
func (p *pacer) wait(ctx context.Context) bool {
	now := time.Now()
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(reportPause)
	over := p.due.Sub(now) - reportBurst*reportPause
	if over <= 0 {
		return true
	}
	select {
	case <-time.After(over):
		return true
	case <-ctx.Done():
		return false
	}
}

// inbox puts updates together.
type inbox struct {
	begun    *gantryv1.NodeUpdate // parts of an update that is not whole yet
	services map[string]*book
}

// book is the endpoints of one service.
type book struct {
	header    *gantryv1.ServiceEndpoints
	endpoints map[string]*gantryv1.Endpoint
}

func newInbox() *inbox { return &inbox{services: map[string]*book{}} }

// add takes one message and returns the update that it completes; nil if there is none, or nothing in it.
func (i *inbox) add(u *gantryv1.NodeUpdate) *gantryv1.NodeUpdate {
	if i.begun != nil {
		proto.Merge(i.begun, u)
		i.begun.More = u.More
		u = i.begun
	}
	if u.More {
		i.begun = u
		return nil
	}
	i.begun = nil
	if proto.Size(u) == 0 {
		return nil // the server only says that it lives
	}
	i.resolve(u)
	return u
}

// resolve replaces differences of endpoints by the whole.
func (i *inbox) resolve(u *gantryv1.NodeUpdate) {
	if u.Full {
		clear(i.services)
	}
	for _, key := range u.RemovedEndpoints {
		delete(i.services, key)
	}
	changed := map[string]*book{}
	for _, e := range u.Endpoints {
		b := i.services[e.Service]
		if !e.Delta || b == nil {
			b = &book{header: e, endpoints: map[string]*gantryv1.Endpoint{}}
			i.services[e.Service] = b
		}
		b.add(e)
		changed[e.Service] = b
	}
	u.Endpoints = u.Endpoints[:0]
	for _, b := range changed {
		u.Endpoints = append(u.Endpoints, b.whole())
	}
}

func (b *book) add(e *gantryv1.ServiceEndpoints) {
	for _, ep := range e.Endpoints {
		b.endpoints[ep.Instance] = ep
	}
	for _, id := range e.Removed {
		delete(b.endpoints, id)
	}
}

// whole is a new message: those who got an earlier one may keep it.
func (b *book) whole() *gantryv1.ServiceEndpoints {
	h := b.header
	out := &gantryv1.ServiceEndpoints{
		Service: h.Service, Environment: h.Environment, App: h.App, Name: h.Name, VirtualIp: h.VirtualIp,
		Ports: h.Ports, Attachments: h.Attachments, Endpoints: make([]*gantryv1.Endpoint, 0, len(b.endpoints)),
	}
	for _, ep := range b.endpoints {
		out.Endpoints = append(out.Endpoints, ep)
	}
	return out
}
