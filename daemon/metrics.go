package daemon

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/gantryd/gantry/agent"
	"github.com/gantryd/gantry/control/job"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/control/schedule"
	"github.com/gantryd/gantry/discovery"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/internal/tally"
	"github.com/gantryd/gantry/network"
	"github.com/gantryd/gantry/observe"
	"github.com/gantryd/gantry/server/nodesession"
	"github.com/gantryd/gantry/store"
)

const metricsPath = "/metrics"

// nodeMetrics publishes the process and what the agent does.
func (d *daemon) nodeMetrics(a *agent.Agent, own *machine) *observe.Metrics {
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
	m.Gauge("node_reports_waiting", "Observations of instances that no server has been told.", number(a.Reports))
	m.Gauge("certificate_end_timestamp_seconds", "When the certificate of this machine ends, in seconds since 1970.", func() float64 {
		return float64(own.keeper.Ends().Unix())
	})
	networkMetrics(m, a.Network.Figures(), a.Lag)
	nameMetrics(m, a.Discovery.Figures())
	if x := a.Images.Peers(); x != nil {
		imageMetrics(m, x.Figures())
	}
	return m
}

// networkMetrics publishes how the kernel is kept up with what is reachable where.
func networkMetrics(m *observe.Metrics, f *network.Figures, lag func() int) {
	m.Time("network_apply_seconds", "Times the kernel's tables were brought up to date.", &f.Applies)
	m.Count("network_apply_failures_total", "Times they could not be.", &f.Failed)
	m.Count("network_rewrites_total", "Times the nftables table was written as a whole: a change did not fit, or it was not as Gantry had left it.", &f.Rewrites)
	m.Gauge("network_changes_waiting", "Changes of endpoints that the kernel and the name server do not have yet.", number(lag))
}

// nameMetrics publishes what the name server of this machine's instances is asked.
func nameMetrics(m *observe.Metrics, f *discovery.Figures) {
	m.Counts("dns_requests_total", "Questions to the name server, by what became of them.", "outcome", map[string]*tally.Counter{
		"answered": &f.Answered, "not_found": &f.NotFound, "refused": &f.Refused, "forwarded": &f.Forwarded, "failed": &f.Failed,
	})
	m.Time("dns_answer_seconds", "Answers that this name server made itself.", &f.Answers)
	m.Time("dns_forward_seconds", "Questions that were put to other name servers.", &f.Forwards)
	m.Level("dns_forwards_waiting", "Such questions under way.", &f.Waiting)
}

// number is a count as a gauge takes it.
func number(read func() int) func() float64 { return func() float64 { return float64(read()) } }

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
	m.Gauge("store_events_waiting", "Events of the part of this server that is furthest behind the state.", number(st.Backlog))
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

// jobMetrics publishes what is done about jobs.
func jobMetrics(m *observe.Metrics, f *job.Figures) {
	m.Time("job_pass_seconds", "Passes that had jobs to look at, with their commits.", &f.Passes)
	m.Level("job_queue", "Jobs that the last pass looked at together.", &f.Queue)
	m.Count("job_failures_total", "Times a job could not be brought on.", &f.Failed)
}

// sessionMetrics publishes the sessions of nodes.
func sessionMetrics(m *observe.Metrics, h *nodesession.Hub) {
	m.Gauge("server_sessions", "Nodes that have a session with this server.", number(h.Sessions))
	m.Gauge("server_sessions_behind", "Nodes that have not been sent all that has changed.", func() float64 {
		sessions, _ := h.Backlog()
		return float64(sessions)
	})
	m.Gauge("server_session_backlog", "What has changed and nodes have not been sent: instances, services and machines, for each node.", func() float64 {
		_, changes := h.Backlog()
		return float64(changes)
	})
	m.Time("server_session_update_seconds", "News given to the stream of a node, which takes its time if the node does.", &h.Figures().Updates)
}

// metrics serves what the roles of this machine publish just now.
func (r *serverRole) metrics(node *observe.Metrics) http.Handler {
	etcd := observe.New()
	etcd.Etcd()
	return observe.Handler(func() []*observe.Metrics {
		out := []*observe.Metrics{node}
		if r.machine.isServer() { // also while no majority is there
			out = append(out, etcd)
		}
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
