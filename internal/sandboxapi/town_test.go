package sandboxapi

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
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

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/agent"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// town stands in for a fleet: its sandboxes have real agents, which run on this host, and no machines. It is what tests of HTTP need; that the API does
// what it says is for tests with machines.
type town struct {
	t *testing.T

	mu        sync.Mutex
	sandboxes map[string]*house
	templates []fleet.Template
	frozen    map[uuid.UUID]string // templates made from sandboxes
	born      int
	full      error // what a create returns
}

type house struct {
	info   fleet.Info
	client *guest.Client
	stop   func()
}

func newTown(t *testing.T) *town {
	tn := &town{t: t, sandboxes: map[string]*house{}, frozen: map[uuid.UUID]string{}}
	for i, name := range []string{"py", "web"} {
		tn.templates = append(tn.templates, fleet.Template{ID: uuid.New(), Names: []string{name}, CPUs: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30, Created: time.Unix(int64(1000+i), 0)})
	}
	t.Cleanup(func() {
		for _, h := range tn.sandboxes {
			h.sleep()
		}
	})
	return tn
}

func (h *house) wake(t *testing.T) error {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "agent"))
	if err != nil {
		return err
	}
	defer l.Close()
	ours, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		return err
	}
	theirs, err := l.Accept()
	if err != nil {
		return err
	}
	server := agent.New(agent.Options{Version: "test"})
	done := make(chan struct{})
	go func() {
		defer close(done)
		agent.ServeConn(context.Background(), theirs, server)
	}()
	h.client = guest.NewClient(ours)
	h.stop = func() {
		h.client.Close()
		<-done
		server.Close()
	}
	h.info.State = fleet.Running
	return nil
}

func (h *house) sleep() {
	if h.stop != nil {
		h.stop()
	}
	h.stop, h.client = nil, nil
}

func fault(kind fleet.Kind, format string, args ...any) error {
	return &fleet.Error{Kind: kind, Message: fmt.Sprintf(format, args...), Hint: "as a test would have it"}
}

func (tn *town) find(id string) (*house, error) {
	h := tn.sandboxes[id]
	if h == nil {
		return nil, fault(fleet.NotFound, "there is no sandbox %s", id)
	}
	if h.info.State == fleet.Dead {
		return nil, fault(fleet.Gone, "sandbox %s has died", id)
	}
	return h, nil
}

func (tn *town) Create(_ context.Context, spec fleet.CreateSpec) (fleet.Info, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	if tn.full != nil {
		return fleet.Info{}, tn.full
	}
	i := slices.IndexFunc(tn.templates, func(t fleet.Template) bool {
		return slices.Contains(t.Names, spec.Template) || t.ID.String() == spec.Template
	})
	if i < 0 {
		return fleet.Info{}, fault(fleet.NotFound, "there is no template %s", spec.Template)
	}
	reach, err := policy(spec.Reach)
	if err != nil {
		return fleet.Info{}, err
	}
	timeout := cmp.Or(spec.Timeout, 5*time.Minute)
	tn.born++
	started := time.Unix(int64(1_000_000+tn.born), 0)
	h := &house{info: fleet.Info{
		ID: strings.ReplaceAll(uuid.NewString(), "-", ""), Template: tn.templates[i].ID, Name: spec.Template, Owner: spec.Owner, Started: started, End: started.Add(timeout),
		OnTimeout: spec.OnTimeout, AutoResume: spec.AutoResume, Secure: !spec.Insecure, Metadata: spec.Metadata, CPUs: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30,
		Net: "tap", Reach: reach, Private: spec.Private,
	}}
	if h.info.Secure {
		h.info.Token = "token-" + h.info.ID
	}
	if h.info.Private {
		h.info.Traffic = "traffic-" + h.info.ID
	}
	tn.sandboxes[h.info.ID] = h
	return h.info, h.wake(tn.t)
}

func (tn *town) Get(_ context.Context, id string) (fleet.Info, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	h, err := tn.find(id)
	if err != nil {
		return fleet.Info{}, err
	}
	return h.info, nil
}

func (tn *town) List(_ context.Context, f fleet.Filter) (fleet.Page, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	var page fleet.Page
	var all []fleet.Info
	for _, h := range tn.sandboxes {
		i := h.info
		states := f.States
		if len(states) == 0 {
			states = []fleet.State{fleet.Running, fleet.Paused}
		}
		matches := maps.Collect(maps.All(f.Metadata))
		maps.DeleteFunc(matches, func(k, v string) bool { return i.Metadata[k] == v })
		if !slices.Contains(states, i.State) || f.Owner != "" && f.Owner != i.Owner || len(matches) > 0 || f.Template != "" && f.Template != i.Name || i.Started.Before(f.StartedAfter) {
			continue
		}
		if i.State == fleet.Running {
			page.Running++
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b fleet.Info) int {
		if f.Oldest {
			a, b = b, a
		}
		return b.Started.Compare(a.Started)
	})
	from, err := strconv.Atoi(cmp.Or(f.Token, "0"))
	if err != nil || from < 0 || from > len(all) {
		return page, fault(fleet.Invalid, "the token is none of ours")
	}
	to := min(len(all), from+cmp.Or(f.Limit, 100))
	if to < len(all) {
		page.Next = strconv.Itoa(to)
	}
	page.Sandboxes = all[from:to]
	return page, nil
}

func (tn *town) Kill(_ context.Context, id string) error {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	h, err := tn.find(id)
	if err != nil {
		return fault(fleet.NotFound, "there is no sandbox %s", id)
	}
	h.sleep()
	h.info.State, h.info.Reason = fleet.Dead, "it was killed"
	return nil
}

func (tn *town) Pause(_ context.Context, id string) (fleet.Info, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	h, err := tn.find(id)
	if err != nil {
		return fleet.Info{}, err
	}
	if h.info.State == fleet.Paused {
		return h.info, fault(fleet.Conflict, "sandbox %s is paused already", id)
	}
	h.sleep()
	h.info.State = fleet.Paused
	return h.info, nil
}

func (tn *town) Connect(_ context.Context, id string, timeout time.Duration) (fleet.Info, bool, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	h, err := tn.find(id)
	if err != nil {
		return fleet.Info{}, false, err
	}
	if h.info.State == fleet.Running {
		return h.info, false, nil
	}
	return h.info, true, h.wake(tn.t)
}

func (tn *town) Fork(ctx context.Context, id string, n int, timeout time.Duration, owner string) ([]fleet.Fork, fleet.ForkReport, error) {
	info, err := tn.Get(ctx, id)
	if err != nil {
		return nil, fleet.ForkReport{}, err
	}
	if info.State == fleet.Paused {
		return nil, fleet.ForkReport{}, fault(fleet.Conflict, "sandbox %s is paused", id)
	}
	forks := make([]fleet.Fork, min(n, 5))
	for i := range forks {
		forks[i].Info, forks[i].Err = tn.Create(ctx, fleet.CreateSpec{Template: info.Name, Owner: owner, Timeout: timeout, Private: info.Private})
		if i == 3 {
			forks[i] = fleet.Fork{Err: &fleet.Error{Kind: fleet.Busy, Message: "no room"}}
		}
	}
	return forks, fleet.ForkReport{Snapshot: uuid.New(), Stopped: 19 * time.Millisecond}, nil
}

func (tn *town) Snapshot(ctx context.Context, id, name string) (uuid.UUID, []string, error) {
	if _, err := tn.Get(ctx, id); err != nil {
		return uuid.Nil, nil, err
	}
	tn.mu.Lock()
	defer tn.mu.Unlock()
	t := fleet.Template{ID: uuid.New(), Created: time.Unix(int64(2000+len(tn.templates)), 0)}
	if name != "" {
		t.Names = []string{name}
	}
	tn.templates = append(tn.templates, t)
	tn.frozen[t.ID] = id
	return t.ID, t.Names, nil
}

func (tn *town) Snapshots(_ context.Context, sandbox string) ([]fleet.Template, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(tn.templates), func(t fleet.Template) bool {
		of := tn.frozen[t.ID]
		return of == "" || sandbox != "" && of != sandbox
	}), nil
}

func policy(r fleet.Reach) (network.Policy, error) {
	if r.Offline {
		return network.Policy{}, fault(fleet.Invalid, "the network of this template is not filtered")
	}
	p, err := network.ParsePolicy(r.Allow, r.Deny)
	if err != nil {
		err = fault(fleet.Invalid, "%v", err)
	}
	return p, err
}

func (tn *town) SetReach(_ context.Context, id string, r fleet.Reach) error {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	h, err := tn.find(id)
	if err == nil {
		h.info.Reach, err = policy(r)
	}
	return err
}

func (tn *town) SetTimeout(_ context.Context, id string, d time.Duration) error {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	h, err := tn.find(id)
	if err == nil {
		h.info.End = h.info.Started.Add(d)
	}
	return err
}

func (tn *town) Refresh(ctx context.Context, id string, d time.Duration) error {
	return tn.SetTimeout(ctx, id, d)
}

func (tn *town) Agent(_ context.Context, id string) (*guest.Client, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	h, err := tn.find(id)
	if err != nil {
		return nil, err
	}
	if h.info.State == fleet.Paused {
		if !h.info.AutoResume {
			return nil, fault(fleet.Conflict, "sandbox %s is paused", id)
		}
		if err := h.wake(tn.t); err != nil {
			return nil, err
		}
	}
	return h.client, nil
}

func (tn *town) Metrics(ctx context.Context, id string, _, _ time.Time) ([]fleet.Metric, error) {
	if _, err := tn.Get(ctx, id); err != nil {
		return nil, err
	}
	return []fleet.Metric{{Time: time.Unix(1, 0), CPUs: 2, CPUPercent: 150, MemTotal: 10, VMM: map[string]float64{"block.read_bytes": 7}}}, nil
}

func (tn *town) Logs(ctx context.Context, id string, after time.Time, limit int, oldest bool) ([]fleet.LogEntry, error) {
	if _, err := tn.Get(ctx, id); err != nil {
		return nil, err
	}
	all := []fleet.LogEntry{{Time: time.UnixMilli(1000), Level: "info", Message: "woken"}, {Time: time.UnixMilli(2000), Level: "warn", Message: "slow"}, {Time: time.UnixMilli(3000), Level: "debug", Message: "woken again"}}
	all = slices.DeleteFunc(all, func(e fleet.LogEntry) bool { return !e.Time.After(after) })
	if !oldest {
		slices.Reverse(all)
	}
	return all[:min(limit, len(all))], nil
}

func (tn *town) Templates(context.Context) ([]fleet.Template, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	return slices.Clone(tn.templates), nil
}

func (tn *town) Template(_ context.Context, ref string) (fleet.Template, error) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	for _, t := range tn.templates {
		if t.ID.String() == ref || slices.Contains(t.Names, ref) {
			return t, nil
		}
	}
	return fleet.Template{}, fault(fleet.NotFound, "there is no template %s", ref)
}

func (tn *town) DeleteTemplate(ctx context.Context, ref string) error {
	t, err := tn.Template(ctx, ref)
	if err != nil {
		return err
	}
	tn.mu.Lock()
	defer tn.mu.Unlock()
	for _, h := range tn.sandboxes {
		if h.info.Template == t.ID && h.info.State != fleet.Dead {
			return fault(fleet.Conflict, "sandboxes stand on template %s", ref)
		}
	}
	tn.templates = slices.DeleteFunc(tn.templates, func(o fleet.Template) bool { return o.ID == t.ID })
	return nil
}

func (tn *town) Ready() error { return nil }

// keys knows two secrets.
func keys(_ context.Context, secret string) (string, error) {
	for _, name := range []string{"alice", "bob"} {
		if secret == "spore_"+name {
			return name, nil
		}
	}
	return "", fault(fleet.NotFound, "no such key")
}

// served serves the API of a new town on a loopback port.
func served(t *testing.T, change func(*Options)) (*town, *httptest.Server) {
	t.Helper()
	dir := t.TempDir()
	folder, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := snapshot.Open(folder, filepath.Join(dir, "cache"))
	if err != nil {
		t.Fatal(err)
	}
	tn := newTown(t)
	o := Options{Sandboxes: tn, Snapshots: repo, Check: keys}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(s)
	web.Config = NewHTTPServer(s, nil)
	web.Start()
	t.Cleanup(func() {
		s.Close()
		web.Close()
	})
	return tn, web
}

// header makes the headers of a request out of pairs.
func header(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}
