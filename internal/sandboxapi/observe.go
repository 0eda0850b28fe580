package sandboxapi

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/proxy"
)

// observer counts, logs and traces requests. What it tells of them are routes and ids: no secrets, and no queries, which may hold signatures.
type observer struct {
	log      *slog.Logger
	tracer   trace.Tracer
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

func newObserver(o Options) (*observer, error) {
	ob := &observer{
		log: o.Log, tracer: o.Tracer,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spore_http_requests_total", Help: "Requests that were answered. Route is the API's, or agent or port for what was passed on into a sandbox.",
		}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "spore_http_request_seconds", Help: "How long requests took, until the last byte of the answer. Those passed on into a sandbox may be streams.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"route", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "spore_http_requests_in_flight", Help: "Requests that are being answered."}),
	}
	if o.Metrics != nil {
		for _, c := range []prometheus.Collector{ob.requests, ob.duration, ob.inFlight} {
			if err := o.Metrics.Register(c); err != nil {
				return nil, err
			}
		}
	}
	return ob, nil
}

// serve has next answer a request, and tells of it.
func (ob *observer) serve(w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
	start := time.Now()
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := ob.tracer.Start(ctx, r.Method, trace.WithSpanKind(trace.SpanKindServer))
	r = r.WithContext(ctx)
	rec := &recorder{ResponseWriter: w}
	ob.inFlight.Inc()
	finished := false
	defer func() {
		ob.inFlight.Dec()
		if !finished && rec.status < 400 {
			rec.status = answer.ClientGone // the handler gave up in the middle of an answer
		}
		ob.tell(ctx, r, rec, span, time.Since(start))
	}()
	next(rec, r)
	finished = true
}

func (ob *observer) tell(ctx context.Context, r *http.Request, rec *recorder, span trace.Span, took time.Duration) {
	route, sandbox := "other", r.PathValue("sandboxID")
	if t, ok, err := proxy.TargetOf(r); ok {
		route = "port"
		if t.Port == proxy.AgentPort {
			route = "agent"
		}
		if err == nil {
			sandbox = t.Sandbox
		}
	} else if r.Pattern != "" {
		route = r.Pattern
	}
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	method := r.Method
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		method = "other" // a label takes no names from outside
	}
	ob.requests.WithLabelValues(route, method, strconv.Itoa(rec.status)).Inc()
	ob.duration.WithLabelValues(route, method).Observe(took.Seconds())

	span.SetName(route)
	span.SetAttributes(attribute.String("http.request.method", method), attribute.String("http.route", route), attribute.Int("http.response.status_code", rec.status))
	if sandbox != "" {
		span.SetAttributes(attribute.String("spore.sandbox.id", sandbox))
	}
	if rec.status >= 500 {
		span.SetStatus(codes.Error, http.StatusText(rec.status))
	}
	span.End()

	level := slog.LevelInfo
	switch {
	case rec.status == http.StatusInternalServerError:
		level = slog.LevelError
	case route == "other" || route == "GET /health" || route == "GET /ready":
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{
		slog.String("route", route), slog.String("method", method), slog.Int("status", rec.status), slog.Duration("took", took), slog.Int64("bytes", rec.bytes),
		slog.String("client", r.RemoteAddr),
	}
	if sandbox != "" {
		attrs = append(attrs, slog.String("sandbox", sandbox))
	}
	if id := rec.caller; id != "" {
		attrs = append(attrs, slog.String("key", id))
	}
	if span.SpanContext().HasTraceID() {
		attrs = append(attrs, slog.String("trace", span.SpanContext().TraceID().String()))
	}
	ob.log.LogAttrs(ctx, level, "request", attrs...)
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	caller string // id of the key
}

func (rec *recorder) WriteHeader(status int) {
	if rec.status < 200 {
		rec.status = status
	}
	rec.ResponseWriter.WriteHeader(status)
}

func (rec *recorder) Write(p []byte) (int, error) {
	if rec.status < 200 {
		rec.status = http.StatusOK
	}
	n, err := rec.ResponseWriter.Write(p)
	rec.bytes += int64(n)
	return n, err
}

// Hijack and Unwrap keep what the writer below can do in reach.
func (rec *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(rec.ResponseWriter).Hijack()
}

func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }
