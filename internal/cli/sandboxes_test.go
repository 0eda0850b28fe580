package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// TestForkOfNothing says of an id that is not unique that it is not, although it might have been meant as a snapshot's.
func TestForkOfNothing(t *testing.T) {
	daemon := http.NewServeMux()
	daemon.HandleFunc("GET /v2/sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]openapi.ListedSandbox{{SandboxID: "aa11"}, {SandboxID: "aa22"}})
	})
	daemon.HandleFunc("POST /v2/sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(openapi.Error{Code: http.StatusNotFound, Message: "no such template"})
	})
	server := httptest.NewServer(daemon)
	defer server.Close()
	var out, errs bytes.Buffer
	getenv := func(name string) string { return map[string]string{"SPORE_URL": server.URL}[name] }
	code := Main(t.Context(), []string{"fork", "aa"}, Streams{In: strings.NewReader(""), Out: &out, Err: &errs, Getenv: getenv}, "v0")
	if code != 3 || !strings.Contains(errs.String(), "begins the ids of 2 sandboxes") || !strings.Contains(errs.String(), "no such template") {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
}

// TestSandboxesAsJSON reads what kill and its kin print, of sandboxes for which it went well and of one for which it did not.
func TestSandboxesAsJSON(t *testing.T) {
	daemon := http.NewServeMux()
	daemon.HandleFunc("GET /v2/sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]openapi.ListedSandbox{{SandboxID: "aa11"}, {SandboxID: "bb22"}, {SandboxID: "cc33"}})
	})
	answer := func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") == "bb22" {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(openapi.Error{Code: http.StatusConflict, Message: "not now"})
			return
		}
		_, _ = io.WriteString(w, "{}")
	}
	daemon.HandleFunc("DELETE /sandboxes/{id}", answer)
	daemon.HandleFunc("POST /sandboxes/{id}/pause", answer)
	daemon.HandleFunc("POST /v2/sandboxes/{id}/connect", answer)
	server := httptest.NewServer(daemon)
	defer server.Close()
	for _, c := range []struct {
		args []string
		code int
		want []map[string]string
	}{
		{[]string{"kill", "aa", "cc"}, 0, []map[string]string{{"sandboxID": "aa11"}, {"sandboxID": "cc33"}}},
		{[]string{"kill", "--all"}, 7, []map[string]string{{"sandboxID": "aa11"}, {"sandboxID": "cc33"}}},
		{[]string{"pause", "bb"}, 7, []map[string]string{}},
		{[]string{"wake", "--timeout", "5s", "aa"}, 0, []map[string]string{{"sandboxID": "aa11"}}},
	} {
		var out, errs bytes.Buffer
		getenv := func(name string) string { return map[string]string{"SPORE_URL": server.URL}[name] }
		code := Main(t.Context(), append(c.args, "--json"), Streams{In: strings.NewReader(""), Out: &out, Err: &errs, Getenv: getenv}, "v0")
		var got []map[string]string
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Errorf("%v printed %q: %v", c.args, out.String(), err)
		}
		if diff := cmp.Diff(c.want, got); code != c.code || diff != "" {
			t.Errorf("%v: exit code %d, want %d (%s); -want +got:\n%s", c.args, code, c.code, errs.String(), diff)
		}
	}
}
