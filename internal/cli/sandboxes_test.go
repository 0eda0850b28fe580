package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/store/flock"
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

// TestForkOfTemplate forks a template by a name with which the id of a command's machine begins: of that there can be no forks.
func TestForkOfTemplate(t *testing.T) {
	runDir := t.TempDir()
	id := uuid.MustParse("beef0000-0000-4000-8000-000000000000")
	liveMachine(t, runDir, sandbox.Running{ID: id, Owner: os.Getpid()})
	daemon := http.NewServeMux()
	daemon.HandleFunc("GET /v2/sandboxes", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[]") })
	daemon.HandleFunc("POST /v2/sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(openapi.Sandbox{SandboxID: "aa11"})
	})
	socket := filepath.Join(runDir, "daemon.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: daemon}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	spore := func(args ...string) (code int, printed, said string) {
		var out, errs bytes.Buffer
		getenv := func(name string) string { return map[string]string{"SANDBOX_DIR": runDir}[name] }
		code = Main(t.Context(), append(args, "--socket", socket), Streams{In: strings.NewReader(""), Out: &out, Err: &errs, Getenv: getenv}, "v0")
		return code, out.String(), errs.String()
	}
	if code, _, said := spore("pause", "beef"); code == 0 || !strings.Contains(said, "alone") {
		t.Fatalf("the machine is not found: exit code %d, %s", code, said)
	}
	if code, printed, said := spore("fork", "beef"); code != 0 || printed != "aa11\n" {
		t.Errorf("exit code %d, %q, %s", code, printed, said)
	}
}

// liveMachine writes into a run folder what a live machine has there. This process is its VMM.
func liveMachine(t *testing.T, runDir string, about sandbox.Running) {
	t.Helper()
	dir := filepath.Join(runDir, "machine")
	text, err := json.Marshal(about)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	started := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[19]
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "about"), text, 0o600),
		os.WriteFile(filepath.Join(dir, "vmm"), fmt.Appendf(nil, "%d %s\n", os.Getpid(), started), 0o600)); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(dir)
	if err == nil {
		t.Cleanup(func() { lock.Close() })
		err = flock.Try(lock, flock.Exclusive)
	}
	if err != nil {
		t.Fatal(err)
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
