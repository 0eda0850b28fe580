package sandboxapi

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

func (s routes) PauseSandbox(w http.ResponseWriter, r *http.Request, id string) {
	var q openapi.PauseSandboxJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	if isFalse(q.Memory) {
		refuse(w, "memory: a pause always keeps the memory", "leave it out")
		return
	}
	s.with(w, r, id, func(fleet.Info) error {
		if _, err := s.o.Sandboxes.Pause(r.Context(), id); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
}

func (s routes) ResumeSandbox(w http.ResponseWriter, r *http.Request, id string) {
	s.connect(w, r, id, true)
}

func (s routes) ConnectSandboxV1(w http.ResponseWriter, r *http.Request, id string) {
	s.connect(w, r, id, false)
}

func (s routes) ConnectSandbox(w http.ResponseWriter, r *http.Request, id string) {
	s.connect(w, r, id, false)
}

// connect has a sandbox running. paused: it must have been paused.
func (s routes) connect(w http.ResponseWriter, r *http.Request, id string, paused bool) {
	var q openapi.Wake
	if !s.read(w, r, &q) {
		return
	}
	if isFalse(q.Memory) {
		refuse(w, "memory: a sandbox always wakes with its memory", "leave it out")
		return
	}
	s.with(w, r, id, func(info fleet.Info) error {
		if paused && info.State == fleet.Running {
			return &fleet.Error{Kind: fleet.Conflict, Message: fmt.Sprintf("sandbox %s is running", id), Hint: "use connect, which takes it either way"}
		}
		info, resumed, err := s.o.Sandboxes.Connect(r.Context(), id, seconds(q.Timeout))
		if err != nil {
			return err
		}
		status := http.StatusOK
		if resumed || paused {
			status = http.StatusCreated
		}
		answer.JSON(w, status, s.briefly(r, info))
		return nil
	})
}

func (s routes) ForkSandbox(w http.ResponseWriter, r *http.Request, id string) {
	q := openapi.ForkSandboxJSONRequestBody{Count: 1}
	if !s.read(w, r, &q) {
		return
	}
	s.with(w, r, id, func(info fleet.Info) error {
		forks, report, err := s.o.Sandboxes.Fork(r.Context(), id, q.Count, seconds(q.Timeout), info.Owner)
		if err != nil {
			return err
		}
		results := make([]openapi.ForkResult, len(forks))
		for i, f := range forks {
			if f.Err != nil {
				body := answer.Of(f.Err, http.StatusBadGateway)
				results[i].Error = &body
				continue
			}
			sandbox := s.briefly(r, f.Info)
			results[i].Sandbox = &sandbox
		}
		w.Header().Set("Spore-Snapshot", report.Snapshot.String())
		w.Header().Set("Spore-Stopped-Ms", strconv.FormatFloat(milliseconds(report.Stopped), 'f', 3, 64))
		answer.JSON(w, http.StatusCreated, results)
		return nil
	})
}

func (s routes) SetTimeout(w http.ResponseWriter, r *http.Request, id string) {
	var q openapi.SetTimeoutJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	s.with(w, r, id, func(fleet.Info) error {
		if err := s.o.Sandboxes.SetTimeout(r.Context(), id, seconds(q.Timeout)); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
}

func (s routes) RefreshSandbox(w http.ResponseWriter, r *http.Request, id string) {
	var q openapi.RefreshSandboxJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	s.with(w, r, id, func(fleet.Info) error {
		if err := s.o.Sandboxes.Refresh(r.Context(), id, seconds(q.Duration)); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
}

func (s routes) SnapshotSandbox(w http.ResponseWriter, r *http.Request, id string) {
	var q openapi.SnapshotSandboxJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	s.with(w, r, id, func(fleet.Info) error {
		snapshot, names, err := s.o.Sandboxes.Snapshot(r.Context(), id, q.Name)
		if err != nil {
			return err
		}
		answer.JSON(w, http.StatusCreated, openapi.SnapshotInfo{SnapshotID: snapshot.String(), Names: notNil(names)})
		return nil
	})
}
