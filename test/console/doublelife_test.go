package console

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest/agent"
	"github.com/sporevm/spore/internal/guest/api"
)

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
