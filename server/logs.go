package server

import (
	"context"
	"sort"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

type logSender = func(*gantryv1.LogEntry) error

// Logs implements the API: in order of time, or as they come when following.
func (h *instances) Logs(ctx context.Context, req *connect.Request[gantryv1.LogsRequest], stream *connect.ServerStream[gantryv1.LogEntry]) error {
	if req.Msg.Follow {
		return h.followLogs(ctx, req.Msg, stream.Send)
	}
	targets, err := h.logTargets(req.Msg)
	if err != nil {
		return err
	}
	return h.mergeLogs(ctx, req.Msg, targets, stream.Send)
}

const logsAhead = 64 // entries of one instance that are read before they are due

// mergeLogs sends the logs of all targets by time. It holds a few entries of each, however long they are. Logs of nodes that
// do not answer are missing, which is said at the end.
func (h *instances) mergeLogs(ctx context.Context, m *gantryv1.LogsRequest, targets []*gantryv1.Instance, send logSender) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	sources := make([]<-chan *gantryv1.LogEntry, 0, len(targets))
	lost := &lostNodes{}
	for _, i := range targets {
		out := make(chan *gantryv1.LogEntry, logsAhead)
		sources = append(sources, out)
		group.Go(func() error {
			defer close(out)
			err := h.logsOf(ctx, m, i, func(e *gantryv1.LogEntry) error {
				select {
				case out <- proto.Clone(e).(*gantryv1.LogEntry):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			if fault.Is(err, fault.Unavailable) {
				lost.note(i, err)
				return nil
			}
			return err
		})
	}
	if err := merge(sources, send); err != nil {
		cancel()
		_ = group.Wait() // they end because of the error that is returned
		return err
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return lost.err()
}

// lostNodes collects whose logs cannot be read.
type lostNodes struct {
	mu    sync.Mutex
	names []string
	first error
}

// note takes an instance whose node does not answer.
func (l *lostNodes) note(i *gantryv1.Instance, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names = append(l.names, progress.Name(i))
	if l.first == nil {
		l.first = err
	}
}

func (l *lostNodes) err() error {
	if l.first == nil {
		return nil
	}
	sort.Strings(l.names)
	return fault.Wrap(fault.Unavailable, l.first, "the logs of %s are missing", strings.Join(l.names, ", "))
}

// merge sends what comes from sources, each of them in order, in the order of all.
func merge(sources []<-chan *gantryv1.LogEntry, send logSender) error {
	heads := make([]*gantryv1.LogEntry, len(sources))
	for n, s := range sources {
		heads[n] = <-s
	}
	for {
		first := -1
		for n, e := range heads {
			if e != nil && (first < 0 || e.Time.AsTime().Before(heads[first].Time.AsTime())) {
				first = n
			}
		}
		if first < 0 {
			return nil
		}
		if err := send(heads[first]); err != nil {
			return err
		}
		heads[first] = <-sources[first]
	}
}

func (h *instances) logTargets(m *gantryv1.LogsRequest) ([]*gantryv1.Instance, error) {
	var out []*gantryv1.Instance
	if len(m.Targets) == 0 {
		for _, i := range store.List[*gantryv1.Instance](h.s.store.Snapshot(), "") {
			if i.Environment == m.Environment && i.App == m.App {
				out = append(out, i)
			}
		}
		if len(out) == 0 && !m.Follow {
			return nil, fault.New(fault.NotFound, "the app %q has no instances", m.App).WithHint("gantry ps -a")
		}
		return out, nil
	}
	for _, t := range m.Targets {
		found, err := h.s.resolveAll(&gantryv1.InstanceTarget{Environment: m.Environment, App: m.App, Target: t})
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// logsOf streams the log of one instance. One that has no container yet has no log.
func (h *instances) logsOf(ctx context.Context, m *gantryv1.LogsRequest, i *gantryv1.Instance, fn func(*gantryv1.LogEntry) error) error {
	if i.Node == "" {
		return nil
	}
	n, err := h.s.reach(i.Node)
	if err != nil {
		return err
	}
	up, err := n.Service.Logs(ctx, connect.NewRequest(&gantryv1.LogsRequest{
		Targets: []string{i.Meta.Key}, Follow: m.Follow, Tail: m.Tail, Since: m.Since, Until: m.Until,
	}))
	if err != nil {
		return h.s.answered(i.Node, err)
	}
	err = pump(h.s, i.Node, receiver(up), func(e *gantryv1.LogEntry) error {
		e.Instance, e.Name = i.Meta.Key, progress.Name(i)
		return fn(e)
	})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// follower follows one instance from run to run.
type follower struct {
	started time.Time // of the run that is followed, or was last
	seen    time.Time // of the last entry sent
	busy    bool
}

// following is one request for logs as they come.
type following struct {
	h         *instances
	m         *gantryv1.LogsRequest
	send      logSender
	begun     time.Time
	followers map[string]*follower
	any       bool // something was followed
	ended     chan *follower
	wg        sync.WaitGroup
}

// followLogs streams the logs of all targets, those that appear later and those that are started again included. It ends
// when the only target has ended for good.
func (h *instances) followLogs(ctx context.Context, m *gantryv1.LogsRequest, send logSender) error {
	sub, err := h.s.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		return err
	}
	defer sub.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	f := &following{
		h: h, m: m, send: oneByOne(send), begun: time.Now(), followers: map[string]*follower{}, ended: make(chan *follower),
	}
	defer func() {
		cancel(nil)
		f.wg.Wait()
	}()
	for {
		over, err := f.look(ctx, cancel)
		if over || err != nil {
			return err
		}
		select {
		case <-sub.Wake():
			if _, err := sub.Take(); err != nil {
				return err
			}
		case done := <-f.ended:
			done.busy = false
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func oneByOne(send logSender) logSender {
	var mu sync.Mutex
	return func(e *gantryv1.LogEntry) error {
		mu.Lock()
		defer mu.Unlock()
		return send(e)
	}
}

// look follows every target that runs and is not followed, and reports that there is nothing more to come.
func (f *following) look(ctx context.Context, cancel context.CancelCauseFunc) (over bool, err error) {
	targets, err := f.h.logTargets(f.m)
	single := len(f.m.Targets) == 1
	if err != nil {
		gone := single && f.any && fault.Is(err, fault.NotFound)
		if gone {
			return !f.busy(), nil
		}
		if f.any {
			return false, nil
		}
		return false, err
	}
	f.forget(targets)
	snap := f.h.s.store.Snapshot()
	over = single
	for _, i := range targets {
		v := progress.View(snap, i)
		f.follow(ctx, cancel, v)
		over = over && ended(v) && !pending(v)
	}
	return over && !f.busy(), nil
}

// forget drops what was followed and is gone: instances of a service come and go for as long as somebody watches.
func (f *following) forget(targets []*gantryv1.Instance) {
	there := make(map[string]bool, len(targets))
	for _, i := range targets {
		there[i.Meta.Key] = true
	}
	for id, one := range f.followers {
		if !one.busy && !there[id] {
			delete(f.followers, id)
		}
	}
}

func (f *following) busy() bool {
	for _, one := range f.followers {
		if one.busy {
			return true
		}
	}
	return false
}

// follow streams the run of an instance unless that has been done.
func (f *following) follow(ctx context.Context, cancel context.CancelCauseFunc, v *gantryv1.InstanceView) {
	if v.Status.StartedAt == nil {
		return
	}
	one := f.followers[v.Instance.Meta.Key]
	m := f.m
	switch {
	case one == nil:
		one = &follower{seen: f.begun}
		f.followers[v.Instance.Meta.Key], f.any = one, true
	case one.busy || !v.Status.StartedAt.AsTime().After(one.started):
		return
	default:
		m = f.rest(one)
	}
	one.started, one.busy = v.Status.StartedAt.AsTime(), true
	f.wg.Go(func() {
		if err := f.stream(ctx, m, v, one); err != nil {
			cancel(err)
		}
		select {
		case f.ended <- one:
		case <-ctx.Done():
		}
	})
}

const lostRetry = time.Second // between two attempts to read the log of a node that does not answer

// stream sends the log of one run. While its node does not answer it says so once and tries again, for as long as the
// instance is assigned there.
func (f *following) stream(ctx context.Context, m *gantryv1.LogsRequest, v *gantryv1.InstanceView, one *follower) error {
	for said := false; ; said = true {
		err := f.h.logsOf(ctx, m, v.Instance, func(e *gantryv1.LogEntry) error {
			one.seen = e.Time.AsTime()
			return f.send(e)
		})
		if !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			return err
		}
		if !said {
			if err := f.send(f.missing(v.Instance, err)); err != nil {
				return err
			}
		}
		select {
		case <-time.After(lostRetry):
		case <-ctx.Done():
			return nil
		}
		if i, ok := store.Get[*gantryv1.Instance](f.h.s.store.Snapshot(), v.Instance.Meta.Key); !ok || i.Node != v.Instance.Node {
			return nil
		}
		if !one.seen.Equal(f.begun) {
			m = f.rest(one)
		}
	}
}

// missing is an entry that stands for those of a node that does not answer.
func (f *following) missing(i *gantryv1.Instance, err error) *gantryv1.LogEntry {
	failures := nodeErrors{{i.Node, err}}.failures(f.h.s.store.Snapshot())
	return &gantryv1.LogEntry{Instance: i.Meta.Key, Name: progress.Name(i), Time: timestamppb.Now(), Failure: failures[0]}
}

// rest asks for what comes after all that was sent.
func (f *following) rest(one *follower) *gantryv1.LogsRequest {
	m := proto.Clone(f.m).(*gantryv1.LogsRequest)
	m.Tail, m.Since = -1, timestamppb.New(one.seen.Add(1))
	return m
}
