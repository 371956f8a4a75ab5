package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/observe"
)

// measureScale brings up all instances by one scale, then watches the quiet cluster, then loses a node.
func measureScale(ctx context.Context, o options) ([]line, error) {
	forgetPeak()
	p, err := startPlatform(ctx, o, o.nodes)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if err := p.apply(ctx, "load", "sim:1", o.split, 0, nil); err != nil {
		return nil, err
	}
	var lines []line
	for _, part := range []func(context.Context, options) ([]line, error){p.scaleUp, p.spread, p.quiet, p.answers, p.latency, p.loss} {
		measured, err := part(ctx, o)
		if err != nil {
			return lines, err
		}
		lines = append(lines, measured...)
		fmt.Fprint(os.Stderr, table(measured))
	}
	return lines, nil
}

func (p *platform) scaleUp(ctx context.Context, o options) ([]line, error) {
	var took, created, placed, cpu time.Duration
	err := o.profiled("scale", func() error {
		cpu = cpuTime()
		began := time.Now()
		if err := p.scale(ctx, "load", o.split, o.instances); err != nil {
			return err
		}
		if err := p.watch.await(ctx, "all instances to exist", func(w *watcher) bool { return w.objects >= o.instances }); err != nil {
			return err
		}
		created = time.Since(began)
		if err := p.watch.await(ctx, "all instances to be placed", func(w *watcher) bool { return w.placed >= o.instances }); err != nil {
			return err
		}
		placed = time.Since(began)
		err := p.watch.await(ctx, "all instances to run", func(w *watcher) bool { return w.running >= o.instances })
		took, cpu = time.Since(began), cpuTime()-cpu
		return err
	})
	if err != nil {
		s, _ := p.machines.do(command{Do: "stats"})
		return nil, fmt.Errorf("%w\nnodes: %+v", err, s)
	}
	of := "one service"
	if o.split > 1 {
		of = fmt.Sprintf("%d services", o.split)
	}
	what := fmt.Sprintf("%d instances of %s on %d nodes, from one scale to all reported running", o.instances, of, o.nodes)
	return []line{
		{what: what, value: took.Seconds(), unit: "s", goal: 60, must: true,
			note: fmt.Sprintf("created after %.1f s, placed after %.1f s; %.1f s of the server's CPU time", created.Seconds(), placed.Seconds(), cpu.Seconds())},
	}, nil
}

// spread waits until the nodes that keep endpoints know all of them.
func (p *platform) spread(ctx context.Context, o options) ([]line, error) {
	began := time.Now()
	for {
		s, err := p.machines.do(command{Do: "stats"})
		if err != nil {
			return nil, err
		}
		all := len(s.Ready) > 0
		for _, n := range s.Ready {
			all = all && n == o.instances
		}
		if all {
			note := fmt.Sprintf("%d MiB were sent to nodes in %d updates", s.Bytes>>20, s.Updates)
			return []line{
				{what: "after that, until every node knows every endpoint", value: time.Since(began).Seconds(), unit: "s", note: note},
				{what: "server's memory, most since its start", value: memory("VmHWM"), unit: "MiB", goal: 2048, must: true},
			}, nil
		}
		if time.Since(began) > awaitTimeout {
			return nil, fmt.Errorf("the nodes know %v of %d endpoints", s.Ready, o.instances)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// quiet measures the server when nothing happens.
func (p *platform) quiet(ctx context.Context, o options) ([]line, error) {
	var cores float64
	err := o.profiled("steady", func() error {
		began, cpu := time.Now(), cpuTime()
		select {
		case <-time.After(o.steady):
		case <-ctx.Done():
			return ctx.Err()
		}
		cores = (cpuTime() - cpu).Seconds() / time.Since(began).Seconds()
		return nil
	})
	f := p.copies.Figures()
	note := fmt.Sprintf("%d nodes have told of the image; %d images lack copies, %d copies were tried", len(p.tracker.Keepers(digestOf("sim:1"))),
		f.Lacking.Value(), f.Made.Value()+f.Failed.Value())
	return []line{
		{what: "steady state of the server", value: cores, unit: "cores", goal: 0.3, must: true, note: note},
		{what: "server's memory then", value: memory("VmRSS"), unit: "MiB", goal: 2048},
	}, err
}

// answers measures calls whose answers grow with the instances.
func (p *platform) answers(ctx context.Context, o options) ([]line, error) {
	metrics := observe.New()
	metrics.State(p.store)
	metrics.Etcd()
	scrape := observe.Handler(func() []*observe.Metrics { return []*observe.Metrics{metrics} })
	var lines []line
	for _, call := range []struct {
		what string
		goal float64
		do   func() (size int, err error)
	}{
		{"a scrape of /metrics", 100, func() (int, error) {
			answer := httptest.NewRecorder()
			scrape.ServeHTTP(answer, httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil))
			return answer.Body.Len(), nil
		}},
		{"the list of all instances", 0, func() (int, error) {
			answer, err := p.instances.List(ctx, connect.NewRequest(&gantryv1.ListInstancesRequest{All: true}))
			if err != nil {
				return 0, err
			}
			if n := len(answer.Msg.Instances); n < o.instances {
				return 0, fmt.Errorf("the list has %d of %d instances", n, o.instances)
			}
			return proto.Size(answer.Msg), nil
		}},
		{"the app with its instances", 0, func() (int, error) {
			answer, err := p.apps.Get(ctx, connect.NewRequest(&gantryv1.GetAppRequest{Environment: "production", App: "load"}))
			if err != nil {
				return 0, err
			}
			return proto.Size(answer.Msg), nil
		}},
	} {
		var took []time.Duration
		size := 0
		cpu := cpuTime()
		for range answerRounds {
			began := time.Now()
			n, err := call.do()
			if err != nil {
				return lines, fmt.Errorf("%s: %w", call.what, err)
			}
			took, size = append(took, time.Since(began)), n
		}
		cpu = (cpuTime() - cpu) / answerRounds
		lines = append(lines, line{what: fmt.Sprintf("%s, %d instances, p50", call.what, o.instances), value: quantile(took, 0.5), unit: "ms", goal: call.goal,
			note: fmt.Sprintf("%.1f MiB; %.0f ms of CPU time, with this program's", float64(size)/(1<<20), ms(cpu))})
	}
	return lines, nil
}

const answerRounds = 9

// latency is from a request for one more instance until it has a node.
func (p *platform) latency(ctx context.Context, o options) ([]line, error) {
	var took []time.Duration
	collected := collections()
	err := o.profiled("latency", func() error {
		for n := range o.rounds {
			d, err := p.createOne(ctx, fmt.Sprintf("one%d", n))
			if err != nil {
				return err
			}
			took = append(took, d)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	note := fmt.Sprintf("of %d, the slowest %.1f ms; Go collected garbage %d times meanwhile", len(took), ms(slices.Max(took)), collections()-collected)
	what := fmt.Sprintf("create a service → instance assigned, %d nodes, %d instances", o.nodes, o.instances)
	return []line{
		{what: what + ", p50", value: quantile(took, 0.5), unit: "ms", goal: 10},
		{what: what + ", p99", value: quantile(took, 0.99), unit: "ms", goal: 25, note: note},
	}, nil
}

func (p *platform) createOne(ctx context.Context, app string) (time.Duration, error) {
	p.watch.forgetPlacements()
	began := time.Now()
	if err := p.apply(ctx, app, "sim:1", 1, 1, nil); err != nil {
		return 0, err
	}
	var at time.Time
	err := p.watch.await(ctx, "an instance to be placed", func(w *watcher) bool {
		for _, t := range w.placedAt {
			at = t
		}
		return len(w.placedAt) > 0
	})
	if err != nil {
		return 0, err
	}
	// The next round begins on an idle cluster.
	return at.Sub(began), p.watch.await(ctx, "it to run", func(w *watcher) bool { return w.running == w.objects })
}

// loss silences one node and measures from the moment it is called down.
func (p *platform) loss(ctx context.Context, o options) ([]line, error) {
	p.watch.mu.Lock()
	wanted, there := p.watch.running, 0
	victim := o.nodes / 2
	for _, s := range p.watch.instances {
		if s.object.GetNode() == nodeID(victim) {
			there++
		}
	}
	clear(p.watch.placedAt)
	p.watch.downAt = time.Time{}
	p.watch.mu.Unlock()
	if _, err := p.machines.do(command{Do: "lose", Node: victim}); err != nil {
		return nil, err
	}
	var took, cpu time.Duration
	err := o.profiled("loss", func() error {
		if err := p.watch.await(ctx, "the node to be called down", func(w *watcher) bool { return !w.downAt.IsZero() }); err != nil {
			return err
		}
		cpu = cpuTime()
		return p.watch.await(ctx, "the instances of a lost node to be placed elsewhere", func(w *watcher) bool {
			if len(w.placedAt) < there || w.downAt.IsZero() {
				return false
			}
			var last time.Time
			for _, t := range w.placedAt {
				if t.After(last) {
					last = t
				}
			}
			took = last.Sub(w.downAt)
			return true
		})
	})
	if err != nil {
		return nil, err
	}
	cpu = cpuTime() - cpu
	err = p.watch.await(ctx, "the instances of a lost node to run elsewhere", func(w *watcher) bool { return w.running >= wanted })
	what := fmt.Sprintf("one node of %d lost with %d instances: from called down to all assigned elsewhere", o.nodes, there)
	note := fmt.Sprintf("%.0f ms of the server's CPU time", ms(cpu))
	return []line{{what: what, value: ms(took), unit: "ms", goal: 100, note: note}}, err
}

const replicasPerService = 20

// measureRolling replaces every instance of many services, a tenth at a time.
func measureRolling(ctx context.Context, o options) ([]line, error) {
	forgetPeak()
	p, err := startPlatform(ctx, o, o.nodes)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	update := &gantryv1.UpdateConfig{Parallelism: replicasPerService / 10}
	instances := o.services * replicasPerService
	began := time.Now()
	for n := range o.services / servicesPerApp {
		if err := p.apply(ctx, fmt.Sprintf("app%d", n), "sim:1", servicesPerApp, replicasPerService, update); err != nil {
			return nil, err
		}
	}
	if err := p.watch.await(ctx, "all instances to run", func(w *watcher) bool { return w.running == instances }); err != nil {
		return nil, err
	}
	up := time.Since(began)
	var took, cpu time.Duration
	err = o.profiled("rolling", func() error {
		began, cpu = time.Now(), cpuTime()
		for n := range o.services / servicesPerApp {
			if err := p.apply(ctx, fmt.Sprintf("app%d", n), "sim:2", servicesPerApp, replicasPerService, update); err != nil {
				return err
			}
		}
		err := p.watch.await(ctx, "all instances to be replaced", func(w *watcher) bool {
			return w.byRelease[2] == instances && w.objects == instances
		})
		took, cpu = time.Since(began), cpuTime()-cpu
		return err
	})
	what := fmt.Sprintf("%d services of %d instances on %d nodes", o.services, replicasPerService, o.nodes)
	return []line{
		{what: what + ", all started", value: up.Seconds(), unit: "s"},
		{what: what + ", every instance replaced, 10 % at a time", value: took.Seconds(), unit: "s", goal: 30,
			note: fmt.Sprintf("%.1f s of the server's CPU time", cpu.Seconds())},
	}, err
}

const servicesPerApp = 10

// measureGrowth measures one more instance on clusters of three sizes.
func measureGrowth(ctx context.Context, o options) ([]line, error) {
	var lines []line
	for _, size := range [][2]int{{o.nodes / 100, o.instances / 100}, {o.nodes / 10, o.instances / 10}, {o.nodes, o.instances}} {
		o.nodes, o.instances = max(size[0], 1), size[1]
		measured, err := latencyAt(ctx, o)
		lines = append(lines, measured...)
		if err != nil {
			return lines, err
		}
	}
	ratio := lines[len(lines)-2].value / lines[0].value
	return append(lines, line{what: "growth of the p50 from the smallest to the largest", value: ratio, goal: 2}), nil
}

func latencyAt(ctx context.Context, o options) ([]line, error) {
	p, err := startPlatform(ctx, o, o.nodes)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if err := p.apply(ctx, "load", "sim:1", o.split, 0, nil); err != nil {
		return nil, err
	}
	if err := p.scale(ctx, "load", o.split, o.instances); err != nil {
		return nil, err
	}
	if err := p.watch.await(ctx, "all instances to run", func(w *watcher) bool { return w.running >= o.instances }); err != nil {
		return nil, err
	}
	for _, settle := range []func(context.Context, options) ([]line, error){p.spread, p.quiet} { // the row is of an idle cluster
		if _, err := settle(ctx, o); err != nil {
			return nil, err
		}
	}
	return p.latency(ctx, o)
}
