// Package observe publishes what the daemon counts and times, in the form that Prometheus reads.
//
// New, then the methods that take a part's figures, then Handler for /metrics. The parts know nothing of it: they have
// counters of package internal/tally, which are read when somebody asks. Each role of a daemon has Metrics of its own, which
// come and go with it; Process and Etcd are of the whole process. Everything is safe in parallel. The package
// stores no history and raises no alarms.
package observe

import (
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/gantryd/gantry/internal/tally"
)

// prefix begins the name of every metric of ours.
const prefix = "gantry_"

// Metrics is what one role of a daemon publishes.
type Metrics struct {
	registry *prometheus.Registry
	etcd     bool
}

// New makes Metrics without any.
func New() *Metrics { return &Metrics{registry: prometheus.NewRegistry()} }

// Process publishes what Go and the kernel say of the process, and its version.
func (m *Metrics) Process(version string) {
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: prefix + "info", Help: "The version that runs.", ConstLabels: prometheus.Labels{"version": version},
		}, func() float64 { return 1 }),
	)
}

// Etcd publishes what etcd keeps in the registry of the process. It is there, and says that there is no leader, even where no
// member of the cluster runs: for servers only.
func (m *Metrics) Etcd() { m.etcd = true }

// Handler serves /metrics: what all that parts lists when somebody asks have to say.
func Handler(parts func() []*Metrics) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var all prometheus.Gatherers
		etcd := false
		for _, m := range parts() {
			all, etcd = append(all, m.registry), etcd || m.etcd
		}
		if etcd {
			all = append(all, library{prometheus.DefaultGatherer})
		}
		// What one part cannot tell must not hide the others.
		promhttp.HandlerFor(all, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(rw, r)
	})
}

// Count publishes a counter of a part: "gantry_" comes before the name.
func (m *Metrics) Count(name, help string, c *tally.Counter) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: prefix + name, Help: help},
		func() float64 { return float64(c.Value()) }))
}

// Gauge publishes a value that read gives.
func (m *Metrics) Gauge(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + name, Help: help}, read))
}

// Level publishes a gauge of a part.
func (m *Metrics) Level(name, help string, g *tally.Gauge) {
	m.Gauge(name, help, func() float64 { return float64(g.Value()) })
}

// Levels publishes a value for each key that read gives.
func (m *Metrics) Levels(name, help, label string, read func() map[string]int) {
	m.labelled(prometheus.GaugeValue, name, help, label, read)
}

// Counts publishes a counter of a part for each value of a label.
func (m *Metrics) Counts(name, help, label string, counters map[string]*tally.Counter) {
	m.labelled(prometheus.CounterValue, name, help, label, func() map[string]int {
		out := map[string]int{}
		for key, c := range counters {
			out[key] = int(c.Value())
		}
		return out
	})
}

func (m *Metrics) labelled(kind prometheus.ValueType, name, help, label string, read func() map[string]int) {
	m.registry.MustRegister(&labelled{kind: kind, desc: prometheus.NewDesc(prefix+name, help, []string{label}, nil), read: read})
}

// labelled is a map as a metric with a label.
type labelled struct {
	kind prometheus.ValueType
	desc *prometheus.Desc
	read func() map[string]int
}

// Describe is part of prometheus.Collector.
func (l *labelled) Describe(out chan<- *prometheus.Desc) { out <- l.desc }

// Collect is part of prometheus.Collector.
func (l *labelled) Collect(out chan<- prometheus.Metric) {
	for key, n := range l.read() {
		out <- prometheus.MustNewConstMetric(l.desc, l.kind, float64(n), key)
	}
}

// Time publishes how long something takes, in seconds.
func (m *Metrics) Time(name, help string, l *tally.Latency) {
	m.registry.MustRegister(&latency{desc: prometheus.NewDesc(prefix+name, help, nil, nil), of: l})
}

// latency is a tally.Latency as a histogram.
type latency struct {
	desc *prometheus.Desc
	of   *tally.Latency
}

// Describe is part of prometheus.Collector.
func (l *latency) Describe(out chan<- *prometheus.Desc) { out <- l.desc }

// Collect is part of prometheus.Collector.
func (l *latency) Collect(out chan<- prometheus.Metric) {
	count, sum, atMost := l.of.Read()
	out <- prometheus.MustNewConstHistogram(l.desc, count, sum, atMost)
}

// library gives what etcd keeps in the registry of the process, and nothing else from there: the rest is of libraries that
// count for servers of their own.
type library struct{ from prometheus.Gatherer }

// Gather is part of prometheus.Gatherer.
func (l library) Gather() ([]*dto.MetricFamily, error) {
	all, err := l.from.Gather()
	var out []*dto.MetricFamily
	for _, f := range all {
		if strings.HasPrefix(f.GetName(), "etcd_") {
			out = append(out, f)
		}
	}
	return out, err
}
