// Package observe publishes what the daemon counts and times, in the form that Prometheus reads.
//
// New, then the methods that take a part's figures, then Handler for /metrics. The parts know nothing of it: they have
// counters of package internal/tally, which are read when somebody asks. There is one registry for each daemon, none for the
// process, but for what libraries (etcd, Go) keep for the whole process. Everything is safe in parallel. The package stores
// no history and raises no alarms.
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

// Metrics is the registry of one daemon.
type Metrics struct{ registry *prometheus.Registry }

// New makes a registry that has what Go and the kernel say of the process.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: prefix + "info", Help: "The version that runs.", ConstLabels: prometheus.Labels{"version": version},
		}, func() float64 { return 1 }),
	)
	return m
}

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(prometheus.Gatherers{m.registry, library{prometheus.DefaultGatherer}}, promhttp.HandlerOpts{
		// What one part cannot tell must not hide the others.
		ErrorHandling: promhttp.ContinueOnError,
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
