// Package proxy passes requests on to what runs inside of sandboxes: the agent, and servers on any TCP port.
//
// A request says where it is for by the headers E2b-Sandbox-Id and E2b-Sandbox-Port, or by a host name of the form PORT-ID.anything. Nothing in it is read
// but what says that, and the tokens, which go no further. Streams pass both ways as they come, and so do upgrades to websockets.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// Headers by which SDKs name a sandbox, and prove that they may talk to its agent.
const (
	HeaderSandbox = "E2b-Sandbox-Id"
	HeaderPort    = "E2b-Sandbox-Port"
	HeaderToken   = "X-Access-Token"
	HeaderTraffic = "E2b-Traffic-Access-Token"
)

// AgentPort is the number under which SDKs know the agent. Nothing in the guest listens there.
const AgentPort = 49983

// Sandboxes is what the proxy needs of a fleet.
type Sandboxes interface {
	Get(ctx context.Context, id string) (fleet.Info, error)
	// Agent is a session with the agent of a running sandbox. It wakes one that wakes by itself.
	Agent(ctx context.Context, id string) (*guest.Client, error)
}

// Target is where a request wants to go.
type Target struct {
	Sandbox string
	Port    int
	ByHost  bool // it was named by the host
}

// TargetOf tells where a request wants to go. ok is false for a request that is for no sandbox, and an error for one that names it wrongly.
func TargetOf(r *http.Request) (t Target, ok bool, err error) {
	if id := r.Header.Get(HeaderSandbox); id != "" {
		t = Target{Sandbox: id, Port: AgentPort}
		if p := r.Header.Get(HeaderPort); p != "" {
			if t.Port, err = parsePort(p); err != nil {
				return t, true, err
			}
		}
		if !isID(id) {
			return t, true, fmt.Errorf("%s names no sandbox", HeaderSandbox)
		}
		return t, true, nil
	}
	label, _, dot := strings.Cut(r.Host, ".")
	port, id, dash := strings.Cut(label, "-")
	if !dot || !dash || !isID(id) || len(id) < 20 {
		return t, false, nil
	}
	if t.Port, err = parsePort(port); err != nil {
		return t, false, nil // an ordinary name with a dash
	}
	t.Sandbox, t.ByHost = id, true
	return t, true, nil
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %.20q is not a number from 1 to 65535", s)
	}
	return int(n), nil
}

func isID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// Proxy passes requests on. Its methods may be called concurrently.
type Proxy struct {
	sandboxes Sandboxes
	ports     *http.Transport
}

// New returns a proxy to the sandboxes.
func New(sandboxes Sandboxes) *Proxy {
	p := &Proxy{sandboxes: sandboxes}
	p.ports = &http.Transport{
		DialContext:         p.dial,
		DisableCompression:  true, // what a server says is passed on as it is
		MaxIdleConnsPerHost: 8,
		MaxIdleConns:        256,
		IdleConnTimeout:     30 * time.Second,
	}
	return p
}

// Close closes the connections that wait for more requests.
func (p *Proxy) Close() { p.ports.CloseIdleConnections() }

// ServeHTTP passes a request on to where TargetOf says.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t, _, err := TargetOf(r)
	if err != nil {
		answer.Error(w, http.StatusBadRequest, err.Error(), "it wants the sandbox's id, and the port's number")
		return
	}
	if r.Method == http.MethodConnect {
		answer.Error(w, http.StatusMethodNotAllowed, "there is no CONNECT", "use spore port-forward, or POST /spore/v1/sandboxes/{id}/dial")
		return
	}
	if t.Port == AgentPort {
		p.serveAgent(w, r, t)
		return
	}
	info, err := p.sandboxes.Get(r.Context(), t.Sandbox)
	if err == nil && !admitted(r, info) { // a stranger does not learn how it is either
		answer.Error(w, http.StatusForbidden, "the ports of this sandbox want its token", "send the trafficAccessToken that it was made with as "+HeaderTraffic)
		return
	}
	if err == nil {
		err = alive(info)
	}
	if err != nil {
		answer.Failure(w, r, err, http.StatusBadGateway)
		return
	}
	p.forward(w, r, t, p.ports, &url.URL{Scheme: "http", Host: net.JoinHostPort(t.Sandbox, strconv.Itoa(t.Port))})
}

// alive is an error for a sandbox of which it is known already that it will not answer.
func alive(info fleet.Info) error {
	switch {
	case info.State == fleet.Dead:
		return &fleet.Error{Kind: fleet.Gone, Message: fmt.Sprintf("sandbox %s has died: %s", info.ID, info.Reason), Hint: "make another one"}
	case info.State == fleet.Paused && !info.AutoResume:
		return &fleet.Error{Kind: fleet.Conflict, Message: fmt.Sprintf("sandbox %s is paused", info.ID), Hint: "wake it by POST /sandboxes/ID/connect, or make it with autoResume"}
	}
	return nil
}

// admitted tells whether a request may reach the ports of a sandbox other than the agent's.
func admitted(r *http.Request, info fleet.Info) bool {
	return !info.Private || info.Traffic != "" && equal(r.Header.Get(HeaderTraffic), info.Traffic)
}

// forward passes a request on over the transport.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, t Target, transport http.RoundTripper, to *url.URL) {
	// A client may go on sending while it is answered already: input to a process, for one.
	if r.ProtoMajor == 1 {
		http.NewResponseController(w).EnableFullDuplex()
	}
	rp := &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // errors are answers
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = to.Scheme, to.Host
			strip(pr.Out.Header)
			if t.Port == AgentPort {
				toAgent(pr)
				return
			}
			pr.SetXForwarded()
			if !t.ByHost {
				pr.Out.Host = net.JoinHostPort("localhost", strconv.Itoa(t.Port)) // ours means nothing in there
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) { p.failed(w, r, t, err) },
	}
	rp.ServeHTTP(w, r)
}

// strip takes out of a request what is between the client and this host.
func strip(h http.Header) {
	for _, name := range []string{HeaderSandbox, HeaderPort, HeaderToken, HeaderTraffic} {
		h.Del(name)
	}
	// A server in a sandbox may want a key of its own under this name, but never one of this host's.
	if key := h.Get("X-API-Key"); strings.HasPrefix(key, "spore_") || strings.HasPrefix(key, "e2b_") {
		h.Del("X-API-Key")
	}
	if token, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer "); ok && strings.HasPrefix(token, "spore_") {
		h.Del("Authorization")
	}
}

// failed answers for a guest that did not.
func (p *Proxy) failed(w http.ResponseWriter, r *http.Request, t Target, err error) {
	if r.Context().Err() != nil {
		answer.Failure(w, r, r.Context().Err(), http.StatusBadGateway)
		return
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		answer.Error(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is larger than %d bytes", tooLarge.Limit), "")
		return
	}
	if fe := (*fleet.Error)(nil); errors.As(err, &fe) {
		answer.Failure(w, r, fe, http.StatusBadGateway)
		return
	}
	// It may have died, or fallen asleep, just now.
	info, gerr := p.sandboxes.Get(r.Context(), t.Sandbox)
	if gerr == nil {
		gerr = alive(info)
	}
	if gerr != nil {
		answer.Failure(w, r, gerr, http.StatusBadGateway)
		return
	}
	if ge := (*guest.Error)(nil); t.Port != AgentPort && errors.As(err, &ge) && ge.Status == http.StatusBadGateway {
		answer.Error(w, http.StatusBadGateway, fmt.Sprintf("nothing listens on port %d of sandbox %s", t.Port, t.Sandbox), "start the server there first; it is reached at 127.0.0.1 or ::1 in the guest")
		return
	}
	answer.Error(w, http.StatusBadGateway, fmt.Sprintf("sandbox %s did not answer on port %d: %v", t.Sandbox, t.Port, err), "try again; its logs may say more")
}

// dial connects to "ID:PORT".
func (p *Proxy) dial(ctx context.Context, _, address string) (net.Conn, error) {
	id, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, err := parsePort(port)
	if err != nil {
		return nil, err
	}
	return p.Dial(ctx, id, n)
}

// Dial connects to a TCP port of a sandbox. ctx bounds the connect only.
func (p *Proxy) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	agent, err := p.sandboxes.Agent(ctx, id)
	if err != nil {
		return nil, err
	}
	conn, err := agent.Dial(ctx, port)
	if errors.Is(err, guest.ErrClosed) {
		// It was paused under our hands. If it wakes by itself, it does so now.
		if agent, err = p.sandboxes.Agent(ctx, id); err == nil {
			conn, err = agent.Dial(ctx, port)
		}
	}
	return conn, err
}
