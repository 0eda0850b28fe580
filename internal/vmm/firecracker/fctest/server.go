package fctest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
)

// The errors of requests that come at the wrong time.
var (
	errPreBoot  = errors.New("not before the machine has started")
	errPostBoot = errors.New("not after the machine has started")
	errNotFresh = errors.New("nothing can be loaded after something was configured")
)

// server is the API of one machine.
type server struct {
	description description
	version     string
	minor       int
	machine     *machine

	mu         sync.Mutex
	configured bool
	started    bool
	paused     bool
	end        error // set: the process ends after the answer
	quit       chan error
}

// ServeHTTP implements [http.Handler].
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(r.Body, 51200+1)) // Firecracker's own limit
	var answer any
	if err == nil && len(body) > 51200 {
		err = errors.New("payload too large")
	}
	if err == nil {
		answer, err = s.handle(r.Method, r.URL.Path, body)
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
	case answer != nil:
		json.NewEncoder(w).Encode(answer)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	if s.end != nil {
		http.NewResponseController(w).Flush()
		s.quit <- s.end
	}
}

func (s *server) handle(method, path string, body []byte) (any, error) {
	route, name, err := s.description.find(method, path)
	if err != nil {
		return nil, err
	}
	if route.Body != "" {
		if err := s.description.check(route.Body, s.minor, body); err != nil {
			return nil, err
		}
	} else if len(body) > 0 {
		return nil, fmt.Errorf("a %s has no body here", method)
	}
	switch {
	case (route.When == "before" || route.When == "fresh") && s.started:
		return nil, errPostBoot
	case (route.When == "after" || route.When == "paused") && !s.started:
		return nil, errPreBoot
	case route.When == "fresh" && s.configured:
		return nil, errNotFresh
	case route.When == "paused" && !s.paused:
		return nil, errors.New("a machine that runs can't be saved")
	}
	answer, err := s.act(method+" "+route.Path, name, body)
	if err == nil && route.When == "before" {
		s.configured = true
	}
	return answer, err
}

// act does what a request that is right asks for.
func (s *server) act(what, name string, body []byte) (any, error) {
	m := s.machine
	switch what {
	case "GET /":
		state := map[bool]string{false: "Not started", true: "Running"}[s.started]
		if s.paused {
			state = "Paused"
		}
		return map[string]string{"app_name": "Firecracker", "id": m.id, "state": state, "vmm_version": s.version}, nil
	case "GET /version":
		return map[string]string{"firecracker_version": s.version}, nil
	case "GET /machine-config":
		return map[string]any{"vcpu_count": m.config.VCPUs, "mem_size_mib": m.config.MemoryMiB}, nil
	case "PUT /machine-config":
		return nil, json.Unmarshal(body, &m.config)
	case "PUT /boot-source":
		if err := json.Unmarshal(body, &m.source); err != nil {
			return nil, err
		}
		return nil, readable(m.source.Kernel, m.source.Initramfs)
	case "PUT /drives/{drive_id}":
		var d struct {
			ID   string `json:"drive_id"`
			Path string `json:"path_on_host"`
		}
		if err := json.Unmarshal(body, &d); err != nil {
			return nil, err
		}
		if d.ID != name {
			return nil, errors.New("the body's id is not the path's")
		}
		m.drives = append(m.drives, d.Path)
		return nil, writable(d.Path)
	case "PUT /network-interfaces/{iface_id}":
		var n struct {
			ID  string `json:"iface_id"`
			Tap string `json:"host_dev_name"`
		}
		if err := json.Unmarshal(body, &n); err != nil {
			return nil, err
		}
		if n.ID != name {
			return nil, errors.New("the body's id is not the path's")
		}
		m.taps[n.ID] = n.Tap
		return nil, nil
	case "PUT /vsock":
		var v struct {
			Path string `json:"uds_path"`
		}
		err := json.Unmarshal(body, &v)
		m.vsock = v.Path
		return nil, err
	case "PUT /balloon":
		s.machine.balloon = body
	case "PATCH /balloon", "GET /balloon":
		return s.changeBalloon(what, body)
	case "PUT /actions":
		return nil, s.action(body)
	case "PATCH /vm":
		var v struct {
			State string `json:"state"`
		}
		if err := json.Unmarshal(body, &v); err != nil {
			return nil, err
		}
		s.paused = v.State == "Paused"
		m.run(!s.paused)
	case "PUT /snapshot/create":
		return nil, m.save(body)
	case "PUT /snapshot/load":
		return nil, s.load(body)
	}
	return nil, nil
}

func readable(paths ...string) error {
	for _, path := range paths {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("the file can not be opened: %w", err)
		}
		f.Close()
	}
	return nil
}

func writable(paths ...string) error {
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("the file can not be opened: %w", err)
		}
		f.Close()
	}
	return nil
}

func (s *server) changeBalloon(what string, body []byte) (any, error) {
	var b map[string]any
	if s.machine.balloon == nil {
		return nil, errors.New("there is no balloon")
	}
	if err := errors.Join(json.Unmarshal(s.machine.balloon, &b), json.Unmarshal(or(body, []byte("{}")), &b)); err != nil {
		return nil, err
	}
	s.machine.balloon, _ = json.Marshal(b)
	if what == "PATCH /balloon" {
		return nil, s.machine.discard(int64(b["amount_mib"].(float64)) << 20)
	}
	return b, nil
}

func or(a, b []byte) []byte {
	if len(a) > 0 {
		return a
	}
	return b
}

func (s *server) action(body []byte) error {
	s.machine.actions++
	var a struct {
		Type string `json:"action_type"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return err
	}
	switch {
	case a.Type == "InstanceStart" && s.started:
		return errPostBoot
	case a.Type == "InstanceStart":
		if err := s.machine.boot(); err != nil {
			return fmt.Errorf("starting: %w", err)
		}
		s.started = true
		s.machine.run(true)
	case !s.started:
		return errPreBoot
	case a.Type == "FlushMetrics":
		return s.machine.flushMetrics()
	}
	return nil
}

func (s *server) load(body []byte) error {
	var which map[string]json.RawMessage
	if err := json.Unmarshal(body, &which); err != nil {
		return err
	}
	if (which["mem_backend"] == nil) == (which["mem_file_path"] == nil) {
		return errors.New("either `mem_backend` or `mem_file_path` is required, and only one of them")
	}
	err := s.machine.load(body)
	if err != nil {
		err = fmt.Errorf("loading: %w", err)
		s.end = err
		return err
	}
	s.started, s.paused = true, true
	var resume struct {
		Resume bool `json:"resume_vm"`
	}
	if err := json.Unmarshal(body, &resume); err != nil {
		return err
	}
	if resume.Resume {
		s.paused = false
		s.machine.run(true)
	}
	return nil
}
