package sandboxapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// KeyPolicy says who may use the API without a key. A unix socket is for those whom its file's mode lets in: they never need one.
type KeyPolicy int

// The policies. On loopback, where no key is needed, any string passes for one, for SDKs insist on sending something; but what came by a name that is not
// loopback's, from a page of another origin, or through another proxy needs a key there too.
const (
	KeysBeyondLoopback KeyPolicy = iota // on all addresses but loopback
	KeysAlways
	KeysNever // nobody does, on any address: only where something else keeps strangers out
)

// maxSecret bounds a key, in bytes.
const maxSecret = 256

// guarded is a router that has every route behind the key and the document.
type guarded struct{ s *Server }

// HandleFunc implements openapi.ServeMux.
func (g guarded) HandleFunc(pattern string, handler func(http.ResponseWriter, *http.Request)) {
	public := g.s.document.Public(pattern)
	guarded := func(w http.ResponseWriter, r *http.Request) { g.s.guard(w, r, public, handler) }
	if pattern != tagsPattern {
		g.s.mux.HandleFunc(pattern, guarded)
		return
	}
	// The router wants one of two patterns that a path may match to be the narrower one. The platform's paths do not oblige: this one and that of aliases.
	g.s.mux.HandleFunc("GET /templates/{templateID}/{what}", func(w http.ResponseWriter, r *http.Request) {
		if r.Pattern = pattern; r.PathValue("what") != "tags" {
			answer.Error(w, http.StatusNotFound, fmt.Sprintf("there is no route %s", r.URL.Path), seeDocument)
			return
		}
		guarded(w, r)
	})
}

const tagsPattern = "GET /templates/{templateID}/tags"

// ServeHTTP implements openapi.ServeMux.
func (g guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.s.mux.ServeHTTP(w, r) }

// guard lets a request through to its route if its sender may, and if it is as the document has it.
func (s *Server) guard(w http.ResponseWriter, r *http.Request, public bool, next http.HandlerFunc) {
	s.cors(w, r)
	if !public {
		caller, err := s.authenticate(r)
		if err != nil {
			if errors.Is(err, errKey) {
				w.Header().Set("WWW-Authenticate", "Bearer")
				answer.Error(w, http.StatusUnauthorized, err.Error(), "make a key by `spore key create` and send it as X-API-Key")
				return
			}
			answer.Failure(w, r, err, http.StatusNotFound)
			return
		}
		if rec, ok := w.(*recorder); ok {
			rec.caller = caller
		}
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // where it is not supported there is no slow client either
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := s.document.Check(r); err != nil {
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			answer.Error(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", large.Limit), "files go to the agent, of any size")
			return
		}
		answer.Error(w, http.StatusBadRequest, err.Error(), seeDocument)
		return
	}
	rc.SetReadDeadline(time.Time{}) // what the route does may take longer
	next(w, r)
}

type callerKey struct{}

// caller is the id of the key that a request came with: empty for one that needed none, which sees everybody's sandboxes.
func caller(ctx context.Context) string {
	id, _ := ctx.Value(callerKey{}).(string)
	return id
}

var errKey = errors.New("this needs a valid API key")

// authenticate returns the id of the request's key.
func (s *Server) authenticate(r *http.Request) (string, error) {
	secret := r.Header.Get("X-API-Key")
	if secret == "" {
		secret, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	if secret != "" && len(secret) <= maxSecret {
		id, err := s.o.Check(r.Context(), secret)
		if err == nil {
			return id, nil
		}
		if fleet.KindOf(err) != fleet.NotFound {
			return "", err
		}
	}
	if s.keyless(r) && s.origins.Check(r) == nil {
		return "", nil
	}
	return "", errKey
}

// keyless tells whether a request needs no key.
func (s *Server) keyless(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local != nil && local.Network() == "unix" {
		return true
	}
	switch s.o.Keys {
	case KeysNever:
		return true
	case KeysAlways:
		return false
	}
	// A page that had its own name resolved to loopback, or a proxy beside us, would let strangers in.
	return local != nil && isLoopback(local.String()) && isLoopback(r.RemoteAddr) && isLoopback(r.Host) &&
		r.Header.Get("Forwarded") == "" && r.Header.Get("X-Forwarded-For") == ""
}

// isLoopback tells whether an address or a name, with or without a port, is this host's own.
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// cors lets pages of other origins read the answer: of any where a key is needed, for a key is what they need then; of those that are named in the options
// where none is.
func (s *Server) cors(w http.ResponseWriter, r *http.Request) {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return
	}
	h := w.Header()
	h.Add("Vary", "Origin")
	if s.keyless(r) {
		for _, o := range s.o.Origins {
			if o == origin {
				h.Set("Access-Control-Allow-Origin", origin)
			}
		}
	} else {
		h.Set("Access-Control-Allow-Origin", "*")
	}
	h.Set("Access-Control-Expose-Headers", "X-Next-Token, X-Total-Running, Retry-After, Spore-Snapshot, Spore-Stopped-Ms")
}

// preflight answers a browser that asks what a page may do.
func (s *Server) preflight(w http.ResponseWriter, r *http.Request, allow string) {
	s.cors(w, r)
	h := w.Header()
	h.Set("Allow", allow)
	if h.Get("Access-Control-Allow-Origin") != "" {
		h.Set("Access-Control-Allow-Methods", allow)
		h.Set("Access-Control-Allow-Headers", "X-API-Key, Authorization, Content-Type, *")
		h.Set("Access-Control-Max-Age", "7200")
	}
	w.WriteHeader(http.StatusNoContent)
}

// allowed lists the methods that the path of a request takes; empty if it is no route.
func (s *Server) allowed(r *http.Request) string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if _, pattern := s.mux.Handler(&http.Request{Method: m, URL: r.URL, Host: r.Host}); pattern != "" {
			methods = append(methods, m)
		}
	}
	return strings.Join(methods, ", ")
}
