package console

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/console"
	"github.com/sporevm/spore/internal/guest/agent"
	"github.com/sporevm/spore/internal/guest/api"
)

// double stands in for the daemon where layout, keyboards and screen readers are looked at: it keeps the API's states and shapes and boots nothing. What
// runs "in" its sandboxes is the real agent, on this host, in a folder of its own. The tests of the real daemon are in daemon_test.go.
type double struct {
	t       *testing.T
	home    string
	console http.Handler
	key     string

	mu        sync.Mutex
	snapshots []*snapshotNode
	sandboxes map[string]*sandbox
	asked     []string // "METHOD PATH" of all requests that change something
}

type snapshotNode struct {
	ID          string    `json:"id"`
	Names       []string  `json:"names"`
	Parent      string    `json:"parent,omitempty"`
	Kind        string    `json:"kind"`
	Created     time.Time `json:"created"`
	StoredBytes int64     `json:"storedBytes"`
	MemoryBytes int64     `json:"memoryBytes"`
	DiskBytes   int64     `json:"diskBytes"`
	GuestUsed   int64     `json:"guestUsed,omitempty"`
	Image       string    `json:"image,omitempty"`
	Forks       int       `json:"forks"`
	Template    bool      `json:"template"`
	Processes   []string  `json:"processes,omitempty"`
}

type origin struct {
	Parent   string  `json:"parent,omitempty"`
	Snapshot string  `json:"snapshot"`
	WakeMs   float64 `json:"wakeMs"`
	Pooled   bool    `json:"pooled"`
}

type sandbox struct {
	ID       string            `json:"sandboxID"`
	Template string            `json:"templateID"`
	Alias    string            `json:"alias,omitempty"`
	State    string            `json:"state"`
	Started  time.Time         `json:"startedAt"`
	End      time.Time         `json:"endAt"`
	CPUs     int               `json:"cpuCount"`
	MemoryMB int               `json:"memoryMB"`
	DiskMB   int               `json:"diskSizeMB"`
	Version  string            `json:"envdVersion"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Token    string            `json:"envdAccessToken,omitempty"`
	Spore    *origin           `json:"spore,omitempty"`

	agent *agent.Server
	logs  []logEntry
}

type logEntry struct {
	Time    time.Time         `json:"timestamp"`
	Level   string            `json:"level"`
	Message string            `json:"message"`
	Fields  map[string]string `json:"fields"`
}

func newDouble(t *testing.T, key string) *double {
	d := &double{t: t, home: t.TempDir(), console: console.Handler(), key: key, sandboxes: map[string]*sandbox{}}
	d.fill()
	t.Cleanup(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, s := range d.sandboxes {
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return d
}

var errNotFound = errors.New("there is no such thing")

func (d *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if id := r.Header.Get("E2b-Sandbox-Id"); id != "" {
		d.guest(w, r, id)
		return
	}
	if r.Method == http.MethodGet && (r.URL.Path == "/" || strings.HasPrefix(r.URL.Path, "/assets/")) {
		d.console.ServeHTTP(w, r)
		return
	}
	if d.key != "" && r.Header.Get("X-API-Key") != d.key {
		d.fail(w, 401, "this key is unknown")
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Method != http.MethodGet {
		d.asked = append(d.asked, r.Method+" "+r.URL.Path)
	}
	mux := http.NewServeMux()
	handle := func(pattern string, f func(*http.Request) (int, any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			status, v, err := f(r)
			switch {
			case errors.Is(err, errNotFound):
				d.fail(w, 404, err.Error())
			case err != nil:
				d.fail(w, status, err.Error())
			default:
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(status)
				if v != nil {
					_ = json.NewEncoder(w).Encode(v)
				}
			}
		})
	}
	handle("GET /v2/sandboxes", d.list)
	handle("POST /v2/sandboxes", d.create)
	handle("GET /sandboxes/{id}", d.of(func(s *sandbox, _ *http.Request) (int, any, error) { return 200, s, nil }))
	handle("DELETE /sandboxes/{id}", d.of(d.kill))
	handle("POST /sandboxes/{id}/pause", d.of(d.pause))
	handle("POST /sandboxes/{id}/fork", d.of(d.fork))
	handle("POST /sandboxes/{id}/timeout", d.of(d.timeout))
	handle("POST /sandboxes/{id}/snapshots", d.of(d.snapshot))
	handle("POST /v2/sandboxes/{id}/connect", d.of(d.wake))
	handle("GET /sandboxes/{id}/metrics", d.of(d.metrics))
	handle("GET /v2/sandboxes/{id}/logs", d.of(func(s *sandbox, _ *http.Request) (int, any, error) {
		all := slices.Clone(s.logs)
		slices.Reverse(all)
		return 200, map[string]any{"logs": all}, nil
	}))
	handle("GET /v2/templates", d.templates)
	handle("DELETE /templates/{id}", d.deleteTemplate)
	handle("GET /spore/v1/info", func(*http.Request) (int, any, error) {
		return 200, map[string]any{"version": "v0-test", "arch": "amd64", "engine": map[string]string{"name": "qemu", "version": "7.2", "accel": "tcg"}}, nil
	})
	handle("GET /spore/v1/tree", func(*http.Request) (int, any, error) { return 200, d.snapshots, nil })
	handle("GET /spore/v1/snapshots/{id}/map", d.imageMap)
	handle("GET /spore/v1/snapshots/{a}/diff/{b}", d.diff)
	mux.ServeHTTP(w, r)
}

func (d *double) fail(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": status, "message": message})
}

// guest passes a request on to a sandbox's agent, as the daemon does.
func (d *double) guest(w http.ResponseWriter, r *http.Request, id string) {
	d.mu.Lock()
	s := d.sandboxes[id]
	switch {
	case s == nil:
		d.fail(w, 404, "there is no sandbox "+id)
	case s.State != "running":
		d.fail(w, 409, "sandbox "+id+" is paused")
	case r.Header.Get("X-Access-Token") != s.Token:
		d.fail(w, 401, "the agent wants its token")
	case r.Header.Get("E2b-Sandbox-Port") != "49983":
		d.fail(w, 400, "no such port")
	default:
		d.mu.Unlock()
		s.agent.ServeHTTP(w, r)
		return
	}
	d.mu.Unlock()
}

func (d *double) of(f func(*sandbox, *http.Request) (int, any, error)) func(*http.Request) (int, any, error) {
	return func(r *http.Request) (int, any, error) {
		s := d.sandboxes[r.PathValue("id")]
		if s == nil {
			return 0, nil, errNotFound
		}
		return f(s, r)
	}
}

func (d *double) list(*http.Request) (int, any, error) {
	all := slices.SortedFunc(maps.Values(d.sandboxes), func(a, b *sandbox) int { return b.Started.Compare(a.Started) })
	brief := make([]sandbox, len(all))
	for i, s := range all {
		brief[i] = *s
		brief[i].Token, brief[i].Spore = "", nil
	}
	return 200, brief, nil
}

// add makes a sandbox that stands on a snapshot.
func (d *double) add(on *snapshotNode, age, left time.Duration, metadata map[string]string) *sandbox {
	id := strings.ReplaceAll(uuid.NewString(), "-", "")
	now := time.Now()
	s := &sandbox{
		ID: id, Template: on.ID, State: "running", Started: now.Add(-age), End: now.Add(left), CPUs: 1, MemoryMB: 256, DiskMB: 1024, Version: "0.2.0",
		Metadata: metadata, Token: "token-" + id, Spore: &origin{Snapshot: on.ID, WakeMs: 41.7},
		agent: agent.New(agent.Options{Version: "test", Context: api.Context{Workdir: d.home}}),
	}
	if len(on.Names) > 0 {
		s.Alias = on.Names[0]
	}
	on.Forks++
	d.sandboxes[id] = s
	s.log("info", "created", "template", cmp.Or(s.Alias, on.ID))
	return s
}

func (s *sandbox) log(level, message string, fields ...string) {
	e := logEntry{Time: time.Now(), Level: level, Message: message, Fields: map[string]string{}}
	for i := 0; i < len(fields); i += 2 {
		e.Fields[fields[i]] = fields[i+1]
	}
	s.logs = append(s.logs, e)
}

func (d *double) find(ref string) *snapshotNode {
	for _, n := range d.snapshots {
		if n.ID == ref || slices.Contains(n.Names, ref) {
			return n
		}
	}
	return nil
}

func (d *double) create(r *http.Request) (int, any, error) {
	var spec struct {
		TemplateID string            `json:"templateID"`
		Timeout    int               `json:"timeout"`
		Metadata   map[string]string `json:"metadata"`
	}
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		return 400, nil, err
	}
	on := d.find(spec.TemplateID)
	if on == nil {
		return 404, nil, fmt.Errorf("there is no template %s", spec.TemplateID)
	}
	return 201, d.add(on, 0, time.Duration(spec.Timeout)*time.Second, spec.Metadata), nil
}

func (d *double) kill(s *sandbox, _ *http.Request) (int, any, error) {
	delete(d.sandboxes, s.ID)
	if n := d.find(s.Spore.Snapshot); n != nil {
		n.Forks--
	}
	return 204, nil, s.stop()
}

// stop ends what runs in a sandbox.
func (s *sandbox) stop() error {
	call := func(method string, body, out any) error {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r := httptest.NewRequest(http.MethodPost, "/process.Process/"+method, bytes.NewReader(b))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.agent.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			return fmt.Errorf("%s: %d %s", method, w.Code, w.Body)
		}
		return json.Unmarshal(w.Body.Bytes(), out)
	}
	var running struct{ Processes []struct{ PID int } }
	if err := call("List", struct{}{}, &running); err != nil {
		return err
	}
	for _, p := range running.Processes {
		// It may end by itself meanwhile, and then there is nothing to do.
		_ = call("SendSignal", map[string]any{"process": map[string]int{"pid": p.PID}, "signal": "SIGNAL_SIGKILL"}, &struct{}{})
	}
	return s.agent.Close()
}

// freeze adds a snapshot of a sandbox to the tree.
func (d *double) freeze(s *sandbox, names ...string) *snapshotNode {
	n := &snapshotNode{
		ID: uuid.NewString(), Names: append([]string{}, names...), Parent: s.Spore.Snapshot, Kind: "machine", Created: time.Now(),
		StoredBytes: 11 << 20, MemoryBytes: 256 << 20, DiskBytes: 1 << 30, Template: true,
	}
	d.snapshots = append(d.snapshots, n)
	return n
}

// stand moves a sandbox on to another snapshot.
func (d *double) stand(s *sandbox, on *snapshotNode) {
	if old := d.find(s.Spore.Snapshot); old != nil {
		old.Forks--
	}
	on.Forks++
	s.Spore.Snapshot = on.ID
}

func (d *double) pause(s *sandbox, _ *http.Request) (int, any, error) {
	if s.State == "paused" {
		return 409, nil, errors.New("it is paused already")
	}
	d.stand(s, d.freeze(s))
	s.State = "paused"
	s.log("info", "paused")
	return 204, nil, nil
}

func (d *double) wake(s *sandbox, r *http.Request) (int, any, error) {
	status := 200
	if s.State == "paused" {
		status = 201
		s.log("info", "woken", "ms", "41.7")
	}
	s.State = "running"
	_, _, err := d.timeout(s, r)
	return status, s, err
}

func (d *double) fork(s *sandbox, r *http.Request) (int, any, error) {
	var spec struct{ Count, Timeout int }
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		return 400, nil, err
	}
	if s.State != "running" {
		return 409, nil, errors.New("it is paused")
	}
	on := d.freeze(s)
	d.stand(s, on)
	out := []any{}
	for range cmp.Or(spec.Count, 1) {
		f := d.add(on, 0, time.Duration(spec.Timeout)*time.Second, s.Metadata)
		f.Spore.Parent = s.ID
		out = append(out, map[string]any{"sandbox": f})
	}
	s.log("info", "forked", "count", strconv.Itoa(len(out)))
	return 201, out, nil
}

func (d *double) timeout(s *sandbox, r *http.Request) (int, any, error) {
	var spec struct{ Timeout int }
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		return 400, nil, err
	}
	s.End = time.Now().Add(time.Duration(spec.Timeout) * time.Second)
	return 204, nil, nil
}

func (d *double) snapshot(s *sandbox, r *http.Request) (int, any, error) {
	var spec struct{ Name string }
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		return 400, nil, err
	}
	var names []string
	if spec.Name != "" {
		names = []string{spec.Name}
	}
	n := d.freeze(s, names...)
	d.stand(s, n)
	return 201, map[string]any{"snapshotID": n.ID, "names": n.Names}, nil
}

func (d *double) templates(*http.Request) (int, any, error) {
	out := []any{}
	for _, n := range d.snapshots {
		if n.Template {
			out = append(out, map[string]any{
				"templateID": n.ID, "buildID": n.ID, "names": n.Names, "cpuCount": 1, "memoryMB": n.MemoryBytes >> 20, "diskSizeMB": n.DiskBytes >> 20,
				"createdAt": n.Created, "lastSpawnedAt": nil, "spawnCount": 3 * n.Forks, "spore": map[string]int{"forks": n.Forks, "pool": 0, "poolSize": 0},
			})
		}
	}
	return 200, out, nil
}

func (d *double) deleteTemplate(r *http.Request) (int, any, error) {
	n := d.find(r.PathValue("id"))
	if n == nil {
		return 0, nil, errNotFound
	}
	if n.Forks > 0 {
		return 409, nil, fmt.Errorf("%d sandboxes stand on it", n.Forks)
	}
	d.snapshots = slices.DeleteFunc(d.snapshots, func(o *snapshotNode) bool { return o == n })
	return 204, nil, nil
}

// inHome is a path in the folder that all sandboxes of the double share.
func (d *double) inHome(name string) string { return filepath.Join(d.home, name) }
