package sandboxapi

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"

	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/sandboxapi/openapi/hostile"
	"github.com/sporevm/spore/internal/sandboxapi/proxy"
)

// TestNoRequestMakesItStumble sends requests that are made from the document, several at once. None may be answered by a fault of the server, and every
// answer must be as the document has it.
func TestNoRequestMakesItStumble(t *testing.T) {
	_, web := served(t, nil)
	document, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	a, b := create(t, web, `{"templateID":"py"}`), create(t, web, `{"templateID":"web"}`)
	// The router leads "a/.." elsewhere, which is another request.
	web.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	const workers, requests = 4, 1500
	statuses := sync.Map{}
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			g := hostile.New(document.Spec(), uint64(worker))
			g.Known = map[string][]string{"sandboxID": {a.SandboxID, b.SandboxID}, "sandbox_ids": {a.SandboxID}, "templateID": {"py", "web"}, "alias": {"py"}}
			for range requests {
				req, op := g.Request(web.URL)
				line := req.Method + " " + req.URL.String()
				req.Header.Set("X-API-Key", "spore_alice")
				res, err := web.Client().Do(req)
				if err != nil {
					if strings.Contains(err.Error(), "invalid method") || strings.Contains(err.Error(), "invalid header") {
						continue
					}
					t.Errorf("%.200s: %v", line, err)
					return
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil {
					t.Errorf("%.200s: %v", line, err)
					return
				}
				statuses.Store(res.StatusCode, true)
				if res.StatusCode >= 500 {
					t.Errorf("%.200s: %d %s", line, res.StatusCode, body)
				}
				if req.Method == http.MethodHead || req.Method == http.MethodOptions || req.Method == http.MethodTrace {
					continue
				}
				if err := asWritten(op, res, body); err != nil {
					t.Errorf("%.200s: %d %.300s: %v", line, res.StatusCode, body, err)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range []int{200, 201, 204, 400, 404, 405, 413} {
		if _, ok := statuses.Load(s); !ok {
			t.Errorf("no answer was a %d: the requests reach too little", s)
		}
	}
}

// asWritten holds an answer against the document.
func asWritten(op *openapi3.Operation, res *http.Response, body []byte) error {
	if res.StatusCode >= 400 {
		var e openapi.Error
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		return d.Decode(&e)
	}
	if res.StatusCode >= 300 && res.StatusCode < 400 || len(body) == 0 {
		return nil
	}
	answer := op.Responses.Status(res.StatusCode)
	if answer == nil || answer.Value.Content == nil {
		return nil // another method of this path's
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	return answer.Value.Content.Get("application/json").Schema.Value.VisitJSON(v, openapi3.MultiErrors())
}

func FuzzTarget(f *testing.F) {
	f.Add("49983-0123456789abcdef0123456789abcdef.example.com:3000", "", "")
	f.Add("localhost", "0123456789abcdef", "80")
	f.Add("1-.", "\x00", "-1")
	f.Fuzz(func(t *testing.T, host, id, port string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		r.Header["E2b-Sandbox-Id"], r.Header["E2b-Sandbox-Port"] = []string{id}, []string{port}
		target, ok, err := proxy.TargetOf(r)
		if !ok || err != nil {
			return
		}
		if target.Port < 1 || target.Port > 65535 || strings.Trim(target.Sandbox, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || len(target.Sandbox) > 64 {
			t.Errorf("%+v", target)
		}
	})
}

func FuzzMetadataFilter(f *testing.F) {
	f.Add("a=b&c=d")
	f.Add("a%2525=%2526")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := metadataFilter(s)
		if err == nil && s != "" && m == nil {
			t.Error("a filter that lets everything pass")
		}
	})
}

// The document itself must be a good one, or what it decides is arbitrary.
func TestDocumentIsValid(t *testing.T) {
	document, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := document.Spec().Validate(t.Context()); err != nil {
		t.Error(err)
	}
	if openapi3filter.RegisteredBodyDecoder("application/json") == nil {
		t.Error("no decoder of JSON")
	}
}
