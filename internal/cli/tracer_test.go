package cli

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
)

// TestTracer sends spans where the environment says, and nowhere if it says nothing.
func TestTracer(t *testing.T) {
	got := make(chan []byte, 1)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method == http.MethodPost && r.URL.Path == "/v1/traces" {
			got <- body
		}
	}))
	defer collector.Close()
	var lost bytes.Buffer
	a := &app{Streams: Streams{Getenv: os.Getenv, Err: &lost}, version: "v0-test"}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	quiet, flush, err := a.tracer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, span := quiet.Start(t.Context(), "nobody hears"); span.IsRecording() {
		t.Error("spans are recorded for nobody")
	}
	flush()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tracer, flush, err := a.tracer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, span := tracer.Start(t.Context(), "wake sandbox")
	span.End()
	flush()
	select {
	case body := <-got:
		if !bytes.Contains(body, []byte("wake sandbox")) || !bytes.Contains(body, []byte("v0-test")) {
			t.Errorf("the collector got %q", body)
		}
	default:
		t.Error("the collector got nothing")
	}
	if lost.Len() > 0 {
		t.Errorf("said %q", lost.String())
	}
}
