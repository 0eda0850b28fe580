package fleet_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// TestObserved looks at what is told of a life: a span for each wake with its phases in it, and metrics.
func TestObserved(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	registry := prometheus.NewRegistry()
	d := newDaemon(t, func(o *fleet.Options) {
		o.Tracer, o.Metrics, o.MaxRunning = provider.Tracer("test"), registry, 1
	})
	i := d.create(fleet.CreateSpec{Owner: "me"})
	_, err := d.Create(t.Context(), fleet.CreateSpec{Template: i.Template.String(), Owner: "me"})
	want(t, err, fleet.Quota)
	if _, err := d.Pause(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Connect(t.Context(), i.ID, 0); err != nil {
		t.Fatal(err)
	}
	children := map[string][]string{}
	names := map[string]string{}
	for _, s := range spans.Ended() {
		names[s.SpanContext().SpanID().String()] = s.Name()
		if s.EndTime().Before(s.StartTime()) {
			t.Errorf("span %s ends before it starts", s.Name())
		}
	}
	for _, s := range spans.Ended() {
		if parent := names[s.Parent().SpanID().String()]; parent != "" {
			children[parent] = append(children[parent], s.Name())
		}
	}
	for _, wake := range []string{"create sandbox", "wake sandbox"} {
		if got := strings.Join(children[wake], " "); got != "open memory spawn load wake" {
			t.Errorf("the phases in %q are %q", wake, got)
		}
	}
	values := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, n := range map[string]float64{
		"spore_sandboxes running": 1, "spore_sandboxes paused": 0, "spore_refused_total quota": 1, "spore_refused_total memory": 0,
		"spore_wake_seconds snapshot": 2, "spore_capture_stopped_seconds": 1,
	} {
		if got, ok := values[name]; !ok || got != n {
			t.Errorf("%s is %v (%v), want %v; there are %v", name, got, ok, n, values)
		}
	}
	if err := d.Kill(t.Context(), i.ID); err != nil {
		t.Error(err)
	}
}
