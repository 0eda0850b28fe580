package fleet

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/sporevm/spore/internal/sandbox"
)

// metrics are what the fleet tells Prometheus. What is counted elsewhere is read when it is asked for.
type metrics struct {
	f          *Fleet
	registerer prometheus.Registerer
	wakes      *prometheus.HistogramVec
	stopped    prometheus.Histogram
	refusals   *prometheus.CounterVec

	sandboxes, pool, hits, misses, lost, drained *prometheus.Desc
}

// newMetrics registers the metrics, if there is anywhere to.
func newMetrics(f *Fleet, r prometheus.Registerer) *metrics {
	buckets := []float64{.001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spore_"+name, help, labels, nil)
	}
	m := &metrics{
		f: f, registerer: r,
		wakes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "spore_wake_seconds", Help: "Time from a request to the answer of the sandbox's agent, by how the sandbox came about.", Buckets: buckets,
		}, []string{"from"}),
		stopped: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "spore_capture_stopped_seconds", Help: "Time that a guest stood still while it was captured.", Buckets: buckets,
		}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spore_refused_total", Help: "Sandboxes that were not started, by the reason: quota, memory.",
		}, []string{"reason"}),
		sandboxes: desc("sandboxes", "Sandboxes by state.", "state"),
		pool:      desc("pool_ready", "Sandboxes that wait in a pool.", "template"),
		hits:      desc("pool_hits_total", "Sandboxes that were taken from a pool.", "template"),
		misses:    desc("pool_misses_total", "Sandboxes that were woken because a pool was empty.", "template"),
		lost:      desc("pool_lost_total", "Sandboxes that died while they waited.", "template"),
		drained:   desc("pool_drained_total", "Sandboxes of a pool that were given up for want of memory.", "template"),
	}
	for _, reason := range []string{"quota", "memory"} {
		m.refusals.WithLabelValues(reason) // there from the start, at zero
	}
	if r != nil {
		r.MustRegister(m)
	}
	return m
}

func (m *metrics) unregister() {
	if m.registerer != nil {
		m.registerer.Unregister(m)
	}
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.wakes.Describe(ch)
	m.stopped.Describe(ch)
	m.refusals.Describe(ch)
	for _, d := range []*prometheus.Desc{m.sandboxes, m.pool, m.hits, m.misses, m.lost, m.drained} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.wakes.Collect(ch)
	m.stopped.Collect(ch)
	m.refusals.Collect(ch)
	states := map[State]int{Running: 0, Paused: 0}
	for _, e := range m.f.all() {
		if s := e.get().State; s != Dead {
			states[s]++
		}
	}
	for s, n := range states {
		ch <- prometheus.MustNewConstMetric(m.sandboxes, prometheus.GaugeValue, float64(n), string(s))
	}
	m.f.mu.Lock()
	pools := map[string]sandbox.PoolStats{}
	for ref, p := range m.f.pools {
		pools[ref] = p.pool.Stats()
	}
	m.f.mu.Unlock()
	for ref, s := range pools {
		ch <- prometheus.MustNewConstMetric(m.pool, prometheus.GaugeValue, float64(s.Ready), ref)
		ch <- prometheus.MustNewConstMetric(m.hits, prometheus.CounterValue, float64(s.Hits), ref)
		ch <- prometheus.MustNewConstMetric(m.misses, prometheus.CounterValue, float64(s.Misses), ref)
		ch <- prometheus.MustNewConstMetric(m.lost, prometheus.CounterValue, float64(s.Lost), ref)
		ch <- prometheus.MustNewConstMetric(m.drained, prometheus.CounterValue, float64(s.Drained), ref)
	}
}

func (m *metrics) refused(reason string) { m.refusals.WithLabelValues(reason).Inc() }

func (m *metrics) paused(stopped time.Duration) { m.stopped.Observe(stopped.Seconds()) }

// phases tells how long a wake took: as a metric, and as spans of the trace, one for each of its phases.
func (f *Fleet) phases(ctx context.Context, live *sandbox.Sandbox, begin time.Time, pooled bool) {
	from := "snapshot"
	if pooled {
		from = "pool"
	}
	f.metrics.wakes.WithLabelValues(from).Observe(time.Since(begin).Seconds())
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(attribute.String("spore.sandbox", hexID(live.ID())), attribute.Bool("spore.pooled", pooled))
	if pooled || !span.IsRecording() {
		return
	}
	p := live.Phases()
	at := time.Now().Add(-p.Total)
	for _, phase := range []struct {
		name string
		took time.Duration
	}{{"open", p.Open}, {"memory", p.Memory}, {"spawn", p.Spawn}, {"load", p.Load}, {"wake", p.Wake}} {
		_, s := f.o.Tracer.Start(ctx, phase.name, trace.WithTimestamp(at))
		at = at.Add(phase.took)
		s.End(trace.WithTimestamp(at))
	}
}

// endSpan ends a span with the error that its work ended with.
func endSpan(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
