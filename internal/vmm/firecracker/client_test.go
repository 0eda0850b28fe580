package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// answering returns a client of a server that answers every request by handle.
func answering(t *testing.T, handle http.HandlerFunc) *client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handle}
	go srv.Serve(listener)
	t.Cleanup(func() { srv.Close() })
	c := newClient(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", path) })
	t.Cleanup(c.close)
	return c
}

// TestAnswers checks what is made of answers that are good, bad, and not Firecracker's at all.
func TestAnswers(t *testing.T) {
	for what, c := range map[string]struct {
		status int
		body   string
		want   string // in the error; empty: none
	}{
		"good":         {200, `{"firecracker_version":"1.16.1"}`, ""},
		"refusal":      {400, `{"fault_message":"no such thing"}`, "GET /version (400): no such thing"},
		"odd refusal":  {500, "<html>", "<html>"},
		"empty":        {200, "", "decoding"},
		"no JSON":      {200, "yes", "decoding"},
		"a list":       {200, "[]", "decoding"},
		"without end":  {200, `{"firecracker_version":"` + strings.Repeat("9", 2*maxAnswer) + `"}`, "decoding"},
		"huge refusal": {400, strings.Repeat("no", maxAnswer), "refuses"},
	} {
		t.Run(what, func(t *testing.T) {
			api := answering(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			var out versionAnswer
			err := api.call(t.Context(), quick, "GET", "/version", nil, &out)
			switch {
			case c.want == "" && (err != nil || out.Version != "1.16.1"):
				t.Errorf("answer %+v, %v", out, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v does not say %q", err, c.want)
			case err != nil && len(err.Error()) > 1000:
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

// TestNoAnswer checks that an answer is not waited for for ever, and that the death of the other side is told as such.
func TestNoAnswer(t *testing.T) {
	asked := make(chan struct{}, 8)
	silent := answering(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/entropy" {
			asked <- struct{}{}
		}
		<-r.Context().Done()
	})
	err := silent.call(t.Context(), 10*time.Millisecond, "PUT", "/vm", vmState{statePaused}, nil)
	if err == nil || errors.Is(err, vmm.ErrDead) || !strings.Contains(err.Error(), "no answer in 10ms") {
		t.Errorf("an answer that does not come: %v", err)
	}
	gone := errors.New("the user has gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-asked
		cancel(gone)
	}()
	if err := silent.call(ctx, time.Minute, "PUT", "/entropy", entropy{}, nil); !errors.Is(err, gone) {
		t.Errorf("a request given up: %v", err)
	}
	dying := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
	})
	if err := dying.put(t.Context(), "/entropy", entropy{}); !errors.Is(err, vmm.ErrDead) {
		t.Errorf("a server that dies: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(200, []byte(`{"firecracker_version":"1.16.1"}`))
	f.Add(400, []byte(`{"fault_message":"no"}`))
	f.Add(400, []byte(`[]`))
	f.Fuzz(func(t *testing.T, status int, answer []byte) {
		var out versionAnswer
		err := decode("GET", "/version", status, answer, &out)
		if status >= 300 {
			var refusal *APIError
			if !errors.As(err, &refusal) || refusal.Status != status || refusal.Fault == "" {
				t.Errorf("%d %q: %v", status, answer, err)
			}
		} else if (err == nil) != (json.Unmarshal(answer, &versionAnswer{}) == nil) {
			t.Errorf("%d %q: %v", status, answer, err)
		}
	})
}
