package sandboxapi

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// logBuffer is a log that may be written to and read at once.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestWhatIsToldOfRequests(t *testing.T) {
	var logs logBuffer
	registry := prometheus.NewRegistry()
	spans := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
	_, web := served(t, func(o *Options) {
		o.Log = slog.New(slog.NewJSONHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.Metrics, o.Tracer = registry, tracer
	})
	s := create(t, web, `{"templateID":"py","metadata":{"password":"hunter2"},"envVars":{"SECRET":"hunter2"}}`)
	ask(t, web, "GET", "/sandboxes/"+s.SandboxID, "", header("Traceparent", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"))
	ask(t, web, "GET", "/files?path=/hunter2&signature=v1_hunter2", "", into(s, "49983", "X-Access-Token", s.EnvdAccessToken))
	ask(t, web, "GET", "/hunter2?q=hunter2", "", nil)
	ask(t, web, "BREW", "/sandboxes", "", nil)
	ask(t, web, "GET", "/v2/sandboxes", "", header("X-API-Key", "spore_hunter2", "Host", "evil.example"))

	for _, secret := range []string{"hunter2", s.EnvdAccessToken, "spore_alice"} {
		if strings.Contains(logs.String(), secret) {
			t.Errorf("the log holds %s: %s", secret, logs.String())
		}
	}
	for _, want := range []string{
		`"route":"POST /v2/sandboxes","method":"POST","status":201`, `"route":"GET /sandboxes/{sandboxID}"`, `"sandbox":"` + s.SandboxID + `"`, `"key":"alice"`, `"route":"agent"`,
		`"trace":"0123456789abcdef0123456789abcdef"`, `"route":"other","method":"other","status":405`, `"status":401`,
	} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("the log does not tell %s:\n%s", want, logs.String())
		}
	}

	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "spore_http_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			counted[labels(m)] += m.GetCounter().GetValue()
		}
	}
	for label, want := range map[string]float64{"201 POST POST /v2/sandboxes": 1, "200 GET GET /sandboxes/{sandboxID}": 1, "405 other other": 1, "404 GET other": 1} {
		if counted[label] != want {
			t.Errorf("%s: %v of %v", label, counted[label], counted)
		}
	}

	var names []string
	for _, span := range spans.Ended() {
		names = append(names, span.Name())
		if span.Name() == "GET /sandboxes/{sandboxID}" && span.SpanContext().TraceID().String() != "0123456789abcdef0123456789abcdef" {
			t.Errorf("the client's trace ends at the door: %v", span.SpanContext())
		}
	}
	if got := strings.Join(names, ", "); got != "POST /v2/sandboxes, GET /sandboxes/{sandboxID}, agent, other, other, GET /v2/sandboxes" {
		t.Errorf("spans: %s", got)
	}
}

func labels(m *dto.Metric) string {
	var values []string
	for _, l := range m.GetLabel() {
		values = append(values, l.GetValue())
	}
	return strings.Join(values, " ")
}

// What a client that has left had asked for is given up, in the sandbox too.
func TestClientsThatVanish(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	began, left := make(chan struct{}), make(chan struct{})
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		close(began)
		<-r.Context().Done()
		close(left)
	}))
	defer inside.Close()
	req, err := http.NewRequest("GET", web.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = into(s, port(t, inside.Listener.Addr().String()))
	res, err := web.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	<-began
	res.Body.Close()
	select {
	case <-left:
	case <-time.After(time.Minute):
		t.Error("the server in the sandbox still works for a client that has left")
	}
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("there is an answer")
	}
}
