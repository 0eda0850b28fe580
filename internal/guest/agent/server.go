// Package agent is the guest's side of the sandbox API: processes, files, and
// spore's own routes, behind one http.Handler.
//
// It keeps no state for a session. A host may drop its connection at any time,
// freeze the machine, and speak to the thawed agent over a new one: processes
// have gone on, and nothing of the old session is expected to come back.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/filesystem/filesystemconnect"
	"github.com/sporevm/spore/internal/guest/api/process/processconnect"
)

// Options configure a Server. The zero value serves processes and files.
type Options struct {
	Version string      // of the agent, for stats and reports
	Context api.Context // defaults of new processes until SetContext

	// Group returns an open directory of the version 2 control group in which
	// the next process is to be born. Nil: they share the agent's.
	Group func() int

	// Kills counts processes that were ended for want of memory, but not by the
	// kernel. Nil: there are none.
	Kills func() int64

	// Children keeps the processes started here apart from the orphans that
	// PID 1 reaps. Nil: nothing else reaps.
	Children *Children

	// Wake and Quiesce serve the routes of these names. Nil: 501. A Quiesce that
	// fails leaves the guest running. Between a Quiesce and the Wake that lets
	// processes run, none is started: requests to do so wait.
	Wake    func(context.Context, api.Identity) (api.WakeReport, error)
	Quiesce func(context.Context, api.QuiesceOptions) (api.QuiesceReport, error)
}

// Server answers the sandbox API. Its methods may be called concurrently.
type Server struct {
	options  Options
	defaults atomic.Pointer[api.Context]
	accounts accounts
	table    *table
	watchers *watchers
	cpu      cpuMeter

	processes http.Handler
	files     http.Handler
}

// New returns a Server that is ready to serve.
func New(o Options) *Server {
	if o.Children == nil {
		o.Children = NewChildren()
	}
	if o.Group == nil {
		o.Group = func() int { return 0 }
	}
	if o.Kills == nil {
		o.Kills = func() int64 { return 0 }
	}
	s := &Server{options: o, accounts: accounts{root: "/"}, table: newTable(), watchers: newWatchers()}
	s.SetContext(o.Context)
	// Compression costs the guest far more than the bytes it would save on a
	// stream that never leaves the host.
	opts := []connect.HandlerOption{
		connect.WithCompression("gzip", nil, nil),
		connect.WithReadMaxBytes(api.MaxMessage),
	}
	_, s.processes = processconnect.NewProcessHandler(&processService{s}, opts...)
	_, s.files = filesystemconnect.NewFilesystemHandler(&fileService{s}, opts...)
	return s
}

// SetContext replaces the user, directory and environment that new processes
// get by default. Running ones keep theirs.
func (s *Server) SetContext(c api.Context) { s.defaults.Store(&c) }

// Context returns the defaults in force.
func (s *Server) Context() api.Context { return *s.defaults.Load() }

// ServeHTTP dispatches by hand: right after a thaw under emulation every line
// of code that runs is translated first, so the routes of a wake come before
// any router.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; path {
	case api.PathHealth:
		w.WriteHeader(http.StatusNoContent)
	case api.PathWake:
		serveJSON(w, r, s.options.Wake != nil, s.wake)
	case api.PathQuiesce:
		serveJSON(w, r, s.options.Quiesce != nil, s.quiesce)
	case api.PathFiles:
		s.serveFiles(w, r)
	case api.PathDial:
		s.serveDial(w, r)
	case api.PathStats:
		writeJSON(w, http.StatusOK, s.Stats())
	case api.PathMetrics:
		writeJSON(w, http.StatusOK, s.metrics())
	case api.PathEnvs:
		s.serveEnvs(w)
	case api.PathSymlink:
		s.serveSymlink(w, r)
	default:
		switch {
		case strings.HasPrefix(path, "/"+processconnect.ProcessName+"/"):
			s.processes.ServeHTTP(w, r)
		case strings.HasPrefix(path, "/"+filesystemconnect.FilesystemName+"/"):
			s.files.ServeHTTP(w, r)
		default:
			writeError(w, http.StatusNotFound, fmt.Errorf("no such route: %s", path))
		}
	}
}

// quiesce keeps processes from being made in a guest that stands still.
func (s *Server) quiesce(ctx context.Context, o api.QuiesceOptions) (api.QuiesceReport, error) {
	s.options.Children.hold()
	report, err := s.options.Quiesce(ctx, o)
	if err != nil {
		s.options.Children.release() // the guest runs on
	}
	return report, err
}

// wake lets them be made again once the guest runs.
func (s *Server) wake(ctx context.Context, id api.Identity) (api.WakeReport, error) {
	report, err := s.options.Wake(ctx, id)
	if err == nil && !id.Hold {
		s.options.Children.release()
	}
	return report, err
}

func (s *Server) serveEnvs(w http.ResponseWriter) {
	env := s.Context().Env
	if env == nil {
		env = map[string]string{}
	}
	writeJSON(w, http.StatusOK, env)
}

// serveJSON runs one of the routes that take and give a JSON body.
func serveJSON[Q, A any](w http.ResponseWriter, r *http.Request, served bool, f func(context.Context, Q) (A, error)) {
	if r.Method != http.MethodPost {
		writeError(w, http.StatusMethodNotAllowed, fmt.Errorf("%s needs POST", r.URL.Path))
		return
	}
	if !served {
		writeError(w, http.StatusNotImplemented, fmt.Errorf("%s is not served here", r.URL.Path))
		return
	}
	var q Q
	if err := readJSON(w, r, &q); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	a, err := f(r.Context(), q)
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, ErrInvalid) {
			status = http.StatusBadRequest
		}
		writeError(w, status, err)
		return
	}
	writeJSON(w, http.StatusOK, a)
}

func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxJSONBody))
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	if len(body) == 0 {
		return nil // all defaults
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"code":500,"message":"the answer has no JSON form"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body) // a client that left is no concern of ours
}

func writeError(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, api.Error{Code: status, Message: err.Error()})
}

// Close ends what the server runs on its own: watchers. Processes go on.
func (s *Server) Close() error {
	s.watchers.closeAll()
	return nil
}

// errListenerDone ends the one-connection server of ServeConn.
var errListenerDone = errors.New("connection done")
