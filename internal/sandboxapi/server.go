package sandboxapi

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/builds"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/sandboxapi/proxy"
	"github.com/sporevm/spore/internal/snapshot"
)

// Sandboxes is what the API needs of a fleet. Errors are of type *fleet.Error, or are internal.
type Sandboxes interface {
	Create(ctx context.Context, spec fleet.CreateSpec) (fleet.Info, error)
	Get(ctx context.Context, id string) (fleet.Info, error)
	List(ctx context.Context, f fleet.Filter) (fleet.Page, error)
	Kill(ctx context.Context, id string) error
	Pause(ctx context.Context, id string) (fleet.Info, error)
	Connect(ctx context.Context, id string, timeout time.Duration) (info fleet.Info, resumed bool, err error)
	Fork(ctx context.Context, id string, n int, timeout time.Duration, owner string) ([]fleet.Fork, fleet.ForkReport, error)
	Snapshot(ctx context.Context, id, name string) (uuid.UUID, []string, error)
	SetTimeout(ctx context.Context, id string, d time.Duration) error
	Refresh(ctx context.Context, id string, d time.Duration) error
	SetReach(ctx context.Context, id string, r fleet.Reach) error
	Agent(ctx context.Context, id string) (*guest.Client, error)
	Metrics(ctx context.Context, id string, since, until time.Time) ([]fleet.Metric, error)
	Logs(ctx context.Context, id string, after time.Time, limit int, oldestFirst bool) ([]fleet.LogEntry, error)
	Templates(ctx context.Context) ([]fleet.Template, error)
	Template(ctx context.Context, ref string) (fleet.Template, error)
	DeleteTemplate(ctx context.Context, ref string) error
	Snapshots(ctx context.Context, sandbox string) ([]fleet.Template, error)
	Ready() error
}

// Host is what the API tells of the daemon and its machine.
type Host struct {
	Version       string // of spore
	Arch          string // Go's name
	Engine        string // qemu
	EngineVersion string
	Accel         string            // kvm, tcg
	Limits        map[string]string // for people: what → how much
}

// Options are what a Server is made of. Sandboxes, Snapshots and Check must be set.
type Options struct {
	Sandboxes Sandboxes
	Snapshots *snapshot.Repo // behind the routes of the snapshot tree
	Builds    *builds.Builds // behind those that build templates; nil: none are built here

	// Check finds the key that a secret is of, and returns the key's id. It takes as long for a wrong one as for a right one. An error of kind
	// fleet.NotFound is a wrong secret.
	Check func(ctx context.Context, secret string) (key string, err error)
	Keys  KeyPolicy // who needs none

	// Origins are the web origins besides the daemon's own whose pages may use the API where no key is needed: "https://console.example". Where a key is
	// needed, any may.
	Origins []string

	// Domain is where SDKs find the ports of sandboxes: PORT-ID.Domain. Empty: the name that the request came by, and localhost for an address.
	Domain string
	Host   Host

	Console http.Handler          // what is at / and at all paths that are no route; nil: nothing
	Log     *slog.Logger          // of requests; nil: none
	Metrics prometheus.Registerer // nil: none
	Tracer  trace.Tracer          // nil: none
}

// Server answers the API. Its methods may be called concurrently.
type Server struct {
	o        Options
	document *openapi.Document
	proxy    *proxy.Proxy
	mux      *http.ServeMux
	observe  *observer
	origins  *http.CrossOriginProtection
}

// New returns a Server that is ready to serve. Wrap it by NewHTTPServer, or give a server of your own its limits.
func New(o Options) (*Server, error) {
	if o.Sandboxes == nil || o.Check == nil || o.Snapshots == nil {
		return nil, errors.New("making the API's server: Sandboxes, Snapshots and Check must be set")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	document, err := openapi.Load()
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, document: document, proxy: proxy.New(o.Sandboxes), mux: http.NewServeMux(), origins: http.NewCrossOriginProtection()}
	for _, origin := range o.Origins {
		if err := s.origins.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("making the API's server: %w", err)
		}
	}
	if s.observe, err = newObserver(o); err != nil {
		return nil, fmt.Errorf("making the API's server: %w", err)
	}
	openapi.HandlerWithOptions(routes{s}, openapi.StdHTTPServerOptions{
		BaseRouter: guarded{s},
		ErrorHandlerFunc: func(w http.ResponseWriter, _ *http.Request, err error) {
			answer.Error(w, http.StatusBadRequest, err.Error(), seeDocument)
		},
	})
	s.mux.HandleFunc("PUT "+uploads+"{link}", s.receive)
	return s, nil
}

// Close lets go of the connections into sandboxes.
func (s *Server) Close() { s.proxy.Close() }

// Limits of a server of the API. There is none on how long a request or an answer may take: streams last.
const (
	headerTimeout = 15 * time.Second
	idleTimeout   = 3 * time.Minute
	maxHeader     = 64 << 10 // bytes
	maxBody       = 1 << 20  // bytes of a request to the API itself; files pass through unbounded
	bodyTimeout   = 30 * time.Second
)

// NewHTTPServer returns a server of h for any number of listeners: HTTP/1.1, HTTP/2 without TLS, and with it where a listener brings that.
func NewHTTPServer(h http.Handler, log *log.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000},
	}
}

// routes implements the routes of the document.
type routes struct{ *Server }

const seeDocument = "see /openapi.json"

// ServeHTTP passes what is for a sandbox on to it, and answers the rest.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.observe.serve(w, r, s.dispatch)
}

func (s *Server) dispatch(w http.ResponseWriter, r *http.Request) {
	if _, ok, _ := proxy.TargetOf(r); ok {
		s.proxy.ServeHTTP(w, r)
		return
	}
	if _, pattern := s.mux.Handler(r); pattern != "" {
		// The router needs to see the request itself, to take its path apart.
		s.mux.ServeHTTP(w, r)
		return
	}
	if allow := s.allowed(r); allow != "" {
		if r.Method == http.MethodOptions {
			s.preflight(w, r, allow)
			return
		}
		w.Header().Set("Allow", allow)
		answer.Error(w, http.StatusMethodNotAllowed, fmt.Sprintf("%s does not take %s", r.URL.Path, r.Method), "it takes "+allow)
		return
	}
	if s.o.Console != nil {
		s.o.Console.ServeHTTP(w, r)
		return
	}
	answer.Error(w, http.StatusNotFound, fmt.Sprintf("there is no route %s", r.URL.Path), seeDocument)
}
