package observe

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/internal/tally"
)

// api measures the calls of the API.
type api struct {
	calls   *prometheus.CounterVec
	took    *prometheus.HistogramVec
	running *prometheus.GaugeVec
}

// API measures calls: how many of each procedure ended how, how long calls took, and how many are under way. Streams count
// when they end, and their time is not taken: it says how long somebody watched.
func (m *Metrics) API() connect.Interceptor {
	bounds := tally.Bounds()
	a := &api{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "api_requests_total", Help: "Calls of the API that have ended, by procedure and code.",
		}, []string{"procedure", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "api_request_seconds", Help: "Time that calls without a stream took.", Buckets: bounds[:],
		}, []string{"procedure"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "api_requests_running", Help: "Calls under way.",
		}, []string{"procedure"}),
	}
	m.registry.MustRegister(a.calls, a.took, a.running)
	return a
}

// begin counts a call in and gives what counts it out.
func (a *api) begin(procedure string) (string, func(error)) {
	name := strings.TrimPrefix(procedure, "/gantry.v1.")
	running := a.running.WithLabelValues(name)
	running.Inc()
	return name, func(err error) {
		running.Dec()
		a.calls.WithLabelValues(name, code(err)).Inc()
	}
}

func code(err error) string {
	if err == nil {
		return "ok"
	}
	return wire.Encode(err).Code().String()
}

// WrapUnary is part of connect.Interceptor.
func (a *api) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		name, end := a.begin(req.Spec().Procedure)
		begun := time.Now()
		resp, err := next(ctx, req)
		a.took.WithLabelValues(name).Observe(time.Since(begun).Seconds())
		end(err)
		return resp, err
	}
}

// WrapStreamingClient is part of connect.Interceptor.
func (*api) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is part of connect.Interceptor.
func (a *api) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		_, end := a.begin(conn.Spec().Procedure)
		err := next(ctx, conn)
		end(err)
		return err
	}
}
