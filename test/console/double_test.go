package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/console"
	"github.com/sporevm/spore/internal/guest/agent"
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
	Spore    *origin           `json:"spore"`

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
		brief[i].Token = ""
	}
	return 200, brief, nil
}

func (d *double) find(ref string) *snapshotNode {
	for _, n := range d.snapshots {
		if n.ID == ref || slices.Contains(n.Names, ref) {
			return n
		}
	}
	return nil
}

func (d *double) templates(*http.Request) (int, any, error) {
	out := []any{}
	for _, n := range d.snapshots {
		if n.Template {
			out = append(out, map[string]any{
				"templateID": n.ID, "buildID": n.ID, "names": n.Names, "cpuCount": 1, "memoryMB": n.MemoryBytes >> 20, "diskSizeMB": n.DiskBytes >> 20,
				"createdAt": n.Created, "lastSpawnedAt": nil, "spawnCount": 3 * n.Forks, "spore": map[string]int{"forks": n.Forks, "pool": n.Forks, "poolSize": 2 * n.Forks},
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
