package daemon

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/gantryd/gantry/agent"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/control/schedule"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/observe"
	"github.com/gantryd/gantry/server"
	"github.com/gantryd/gantry/store"
)

const metricsPath = "/metrics"

// nodeMetrics publishes the process and what the agent does.
func (d *daemon) nodeMetrics(a *agent.Agent) *observe.Metrics {
	m, f := observe.New(), a.Figures()
	m.Process(d.Version.GetVersion())
	m.Levels("node_instances", "Instances of this machine by phase.", "phase", a.Phases)
	m.Time("node_create_seconds", "Containers made, with image, network and volumes.", &f.Creates)
	m.Time("node_start_seconds", "Processes started.", &f.Starts)
	m.Time("node_image_fetch_seconds", "Images fetched because an instance needs them.", &f.Images)
	m.Time("node_health_check_seconds", "Health checks.", &f.Checks)
	m.Count("node_health_checks_failed_total", "Health checks that failed.", &f.FailedChecks)
	m.Count("node_steps_failed_total", "Times an instance could not be moved on.", &f.FailedSteps)
	m.Count("node_restarts_total", "Processes started again by restart policies.", &f.Restarts)
	m.Count("node_sessions_total", "Sessions with a server that were begun.", &f.Sessions)
	if x := a.Images.Peers(); x != nil {
		imageMetrics(m, x.Figures())
	}
	return m
}

// imageMetrics publishes the exchange of images with other nodes.
func imageMetrics(m *observe.Metrics, f *peer.Figures) {
	m.Count("image_peer_sent_bytes_total", "Bytes of images sent to other nodes.", &f.Sent)
	m.Count("image_peer_received_bytes_total", "Bytes of images that other nodes sent.", &f.Received)
	m.Count("image_registry_bytes_total", "Bytes of images from registries.", &f.Fallback)
	m.Count("image_peer_failures_total", "Times another node did not send what it was asked for.", &f.Failures)
	m.Count("image_corrupt_blobs_total", "Parts of images that were not what their digest says.", &f.Corrupt)
}

// stateMetrics publishes the state and what the store does with it.
func stateMetrics(st *store.Store) *observe.Metrics {
	m, f := observe.New(), st.Figures()
	m.State(st)
	m.Time("store_update_seconds", "Changes of the state, from the request to the result.", &f.Updates)
	m.Level("store_updates_waiting", "Changes of the state that are under way.", &f.Waiting)
	m.Time("store_transaction_seconds", "Attempts to commit; several changes share one.", &f.Transactions)
	m.Count("store_conflicts_total", "Attempts that found the state changed and began again.", &f.Conflicts)
	m.Count("store_failures_total", "Attempts that etcd did not take.", &f.Failures)
	m.Count("store_writes_total", "Objects put and removed.", &f.Writes)
	return m
}

// scheduleMetrics publishes the placement of instances.
func scheduleMetrics(m *observe.Metrics, f *schedule.Figures) {
	m.Time("schedule_pass_seconds", "Plans of the scheduler that had something to do, with their commit.", &f.Passes)
	m.Count("schedule_placed_total", "Instances that were given a node.", &f.Placed)
	m.Count("schedule_evicted_total", "Instances that were sent away to make room or to even out.", &f.Evicted)
	m.Level("schedule_waiting", "Instances that fit on no node.", &f.Waiting)
}

// rolloutMetrics publishes what is done about services.
func rolloutMetrics(m *observe.Metrics, f *rollout.Figures) {
	m.Time("rollout_pass_seconds", "Passes that decided services, with their commit.", &f.Passes)
	m.Level("rollout_queue", "Services that the last pass decided together.", &f.Queue)
}

// sessionMetrics publishes the sessions of nodes.
func sessionMetrics(m *observe.Metrics, srv *server.Server) {
	m.Gauge("server_sessions", "Nodes that have a session with this server.", func() float64 { return float64(srv.Sessions()) })
}

// metrics serves what the roles of this machine publish just now.
func (r *serverRole) metrics(node *observe.Metrics) http.Handler {
	return observe.Handler(func() []*observe.Metrics {
		out := []*observe.Metrics{node}
		if s, _ := r.current(); s != nil {
			out = append(out, s.metrics)
		}
		return out
	})
}

// as has what a controller changes say so.
func as(ctx context.Context, controller string) context.Context {
	return store.WithOrigin(ctx, store.Origin{By: controller})
}

// measured is the options of handlers whose calls are counted.
func measured(calls connect.Interceptor, opts []connect.HandlerOption) []connect.HandlerOption {
	return append(opts, connect.WithInterceptors(calls))
}
