package bucket_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket"
	"github.com/sporevm/spore/internal/store/storetest"
)

// proxy stands before the S3 server. fault, when it returns true, has answered.
func proxy(t *testing.T, fault func(w http.ResponseWriter, r *http.Request) bool, alter func(r *http.Response) error) string {
	t.Helper()
	target, err := url.Parse(services.S3)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ModifyResponse: alter,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // no answer, rather than an empty one that says all is well
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault == nil || !fault(w, r) {
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// quick makes faults pass quickly.
var quick = bucket.Options{Attempts: 4, Timeout: 2 * time.Second, Backoff: time.Millisecond}

func random(t *testing.T, n int) string {
	t.Helper()
	p := make([]byte, n)
	rand.Read(p)
	return string(p)
}

func readAll(t *testing.T, st store.Store, id uuid.UUID, name string) (string, error) {
	t.Helper()
	o, err := st.Open(t.Context(), id, name)
	if err != nil {
		return "", err
	}
	defer o.Close()
	p := make([]byte, o.Size())
	n, err := o.ReadAt(p, 0)
	if n == len(p) {
		err = nil
	}
	return string(p[:n]), err
}

// TestBadService has a service fail every other request, in each of the ways in
// which services fail.
func TestBadService(t *testing.T) {
	faults := map[string]struct {
		fault func(n int64) func(w http.ResponseWriter, r *http.Request) bool
		alter func(n *atomic.Int64) func(r *http.Response) error
	}{
		"500": {fault: func(n int64) func(w http.ResponseWriter, r *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				if n%2 == 0 {
					return false
				}
				w.WriteHeader(http.StatusInternalServerError)
				return true
			}
		}},
		"slow down": {fault: func(n int64) func(w http.ResponseWriter, r *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				if n%2 == 0 {
					return false
				}
				w.WriteHeader(http.StatusServiceUnavailable)
				io.WriteString(w, "<Error><Code>SlowDown</Code></Error>")
				return true
			}
		}},
		"dropped": {fault: func(n int64) func(w http.ResponseWriter, r *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				if n%3 != 1 {
					return false
				}
				panic(http.ErrAbortHandler)
			}
		}},
		"hangs": {fault: func(n int64) func(w http.ResponseWriter, r *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool {
				if n%8 != 7 {
					return false
				}
				<-r.Context().Done()
				return true
			}
		}},
		"truncates": {alter: func(n *atomic.Int64) func(r *http.Response) error {
			return func(r *http.Response) error {
				if r.Request.Method == http.MethodGet && n.Load()%2 == 1 {
					r.Body = struct {
						io.Reader
						io.Closer
					}{io.LimitReader(r.Body, r.ContentLength/2), r.Body}
				}
				return nil
			}
		}},
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			var alter func(r *http.Response) error
			if f.alter != nil {
				alter = f.alter(&n)
			}
			address := proxy(t, func(w http.ResponseWriter, r *http.Request) bool {
				i := n.Add(1)
				return f.fault != nil && f.fault(i)(w, r)
			}, alter)
			b := open(t, services.URL("s3", address), quick)
			id := uuid.New()
			want := map[string]string{"memfile": random(t, 300<<10) + strings.Repeat("spore", 100<<10), "snapfile": random(t, 5000), store.Manifest: "{}"}
			storetest.Publish(t, b, id, want)
			for name, content := range want {
				if got, err := readAll(t, b, id, name); err != nil || got != content {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			if ids, err := b.List(t.Context()); err != nil || len(ids) != 1 {
				t.Errorf("listed %v, %v", ids, err)
			}
			if err := b.Remove(t.Context(), id, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDeadService has a service that never does what it should: an error, in
// bounded time, and never wrong bytes.
func TestDeadService(t *testing.T) {
	b := open(t, services.URL("s3", proxy(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	}, nil)), bucket.Options{Attempts: 2, Timeout: time.Second, Backoff: time.Millisecond})
	if _, err := b.List(t.Context()); err == nil {
		t.Error("listed")
	}
	if _, err := b.Begin(t.Context(), uuid.New()); err == nil {
		t.Error("begun")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	nobody := open(t, "s3://spores?region=eu-central-1&use_path_style=true&endpoint=http://127.0.0.1:1", bucket.Options{Attempts: 2, Timeout: time.Second, Backoff: time.Millisecond})
	if _, err := nobody.List(t.Context()); err == nil {
		t.Error("listed what is not there")
	}
}

// TestAltered changes stored bytes: compressed data that does not expand as it
// should is refused here, the rest by those who know its digests.
func TestAltered(t *testing.T) {
	var change atomic.Int64 // offset of the byte to change; -1 for none
	change.Store(-1)
	address := proxy(t, nil, func(r *http.Response) error {
		at := change.Load()
		if at < 0 || r.Request.Method != http.MethodGet || !strings.HasSuffix(r.Request.URL.Path, "/memfile") {
			return nil
		}
		data, err := io.ReadAll(r.Body)
		if err != nil || len(data) == 0 {
			return err
		}
		data[int(at)%len(data)] ^= 0x5a
		r.Body = io.NopCloser(bytes.NewReader(data))
		return nil
	})
	b := open(t, services.URL("s3", address), quick)
	id := uuid.New()
	want := strings.Repeat("some memory ", 20000)
	storetest.Publish(t, b, id, map[string]string{"memfile": want})
	refused := 0
	for at := range int64(400) {
		change.Store(at)
		if got, err := readAll(t, b, id, "memfile"); err != nil {
			refused++
		} else if len(got) != len(want) {
			t.Errorf("byte %d changed: %d bytes came out", at, len(got))
		}
	}
	if refused == 0 {
		t.Error("no change was noticed")
	}
}

// TestGivenUp kills a writer before its commit: nothing of it is seen, and Sweep
// removes what it left, and nothing else.
func TestGivenUp(t *testing.T) {
	b := open(t, services.URL("s3", ""), bucket.Options{})
	kept, lost := uuid.New(), uuid.New()
	storetest.Publish(t, b, kept, map[string]string{"memfile": "kept"})
	if err := b.Attach(t.Context(), kept, "metadata.sig", []byte("signed")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []uuid.UUID{lost, kept} {
		d, err := b.Begin(t.Context(), lost)
		if err != nil {
			t.Fatal(err)
		}
		f, err := d.Create("memfile")
		if err == nil {
			_, err = io.WriteString(f, random(t, 1000))
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	if ids, err := b.List(t.Context()); err != nil || len(ids) != 1 {
		t.Errorf("listed %v, %v", ids, err)
	}
	if freed, err := b.Sweep(t.Context(), time.Now().Add(-time.Hour)); freed != 0 || err != nil {
		t.Errorf("within the grace period: freed %d, %v", freed, err)
	}
	if freed, err := b.Sweep(t.Context(), time.Now().Add(time.Hour)); freed < 2000 || err != nil {
		t.Errorf("freed %d, %v", freed, err)
	}
	if freed, err := b.Sweep(t.Context(), time.Now().Add(time.Hour)); freed != 0 || err != nil {
		t.Errorf("again: freed %d, %v", freed, err)
	}
	for name, content := range map[string]string{"memfile": "kept", "metadata.sig": "signed"} {
		if got, err := readAll(t, b, kept, name); err != nil || got != content {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
