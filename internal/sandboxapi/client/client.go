// Package client speaks to a daemon: over its unix socket, or from afar with a key.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/sandboxapi/proxy"
)

// maxAnswer bounds the answers that are read whole, in bytes.
const maxAnswer = 64 << 20

// Error is what a daemon answers when it does not do what it was asked for.
type Error struct {
	Status  int // of HTTP
	Message string
	Damaged bool // what is stored is not what was written
}

func (e *Error) Error() string { return e.Message }

// Client is a daemon's client. Its methods may be called concurrently.
type Client struct {
	base    string
	key     string
	network string
	address string
	http    *http.Client
	agents  http.RoundTripper
}

// Dial returns a client of the daemon whose unix socket is at path. The error wraps fs.ErrNotExist or ECONNREFUSED if none listens there.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("speaking to the daemon: %w", err)
	}
	conn.Close() // it is there; requests have connections of their own
	return newClient("http://spore", "", "unix", path), nil
}

// New returns a client of the daemon at a URL such as http://host:7070.
func New(base, key string) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("%q is not the URL of a daemon: it is like http://host:port", base)
	}
	return newClient("http://"+u.Host, key, "tcp", u.Host), nil
}

func newClient(base, key, network, address string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	// What goes to agents needs streams that run both ways at once.
	var h2 http.Protocols
	h2.SetUnencryptedHTTP2(true)
	return &Client{
		base: base, key: key, network: network, address: address,
		http:   &http.Client{Transport: &http.Transport{DialContext: dial}},
		agents: &http.Transport{DialContext: dial, Protocols: &h2, DisableCompression: true},
	}
}

// CloseIdle closes connections that wait for the next request.
func (c *Client) CloseIdle() {
	c.http.CloseIdleConnections()
	if t, ok := c.agents.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// do sends a request and reads its answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) (http.Header, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("speaking to the daemon: %w", err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the daemon's answer: %w", err)
	}
	if res.StatusCode >= 400 {
		return nil, asError(res.StatusCode, data)
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			return nil, fmt.Errorf("reading the daemon's answer: %w", err)
		}
	}
	return res.Header, nil
}

func asError(status int, data []byte) error {
	var e openapi.Error
	if json.Unmarshal(data, &e) != nil || e.Message == "" {
		e.Message = http.StatusText(status)
	}
	return &Error{Status: status, Message: e.Message, Damaged: e.Damaged}
}

// Info tells about the daemon.
func (c *Client) Info(ctx context.Context) (openapi.Info, error) {
	var info openapi.Info
	_, err := c.do(ctx, http.MethodGet, "/spore/v1/info", nil, &info)
	return info, err
}

// List returns all sandboxes, youngest first.
func (c *Client) List(ctx context.Context) ([]openapi.ListedSandbox, error) {
	all := []openapi.ListedSandbox{}
	for token := ""; ; {
		var page []openapi.ListedSandbox
		query := url.Values{}
		if token != "" {
			query.Set("nextToken", token)
		}
		header, err := c.do(ctx, http.MethodGet, "/v2/sandboxes?"+query.Encode(), nil, &page)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if token = header.Get("X-Next-Token"); token == "" {
			return all, nil
		}
	}
}

// Create makes a sandbox.
func (c *Client) Create(ctx context.Context, spec openapi.NewSandbox) (openapi.Sandbox, error) {
	var s openapi.Sandbox
	_, err := c.do(ctx, http.MethodPost, "/v2/sandboxes", spec, &s)
	return s, err
}

// Kill ends a sandbox.
func (c *Client) Kill(ctx context.Context, id string) error {
	_, err := c.do(ctx, http.MethodDelete, "/sandboxes/"+id, nil, nil)
	return err
}

// KillAll ends all sandboxes.
func (c *Client) KillAll(ctx context.Context) error {
	all, err := c.List(ctx)
	for _, s := range all {
		err = errors.Join(err, c.Kill(ctx, s.SandboxID))
	}
	return err
}

// Pause lets a sandbox sleep.
func (c *Client) Pause(ctx context.Context, id string) error {
	_, err := c.do(ctx, http.MethodPost, "/sandboxes/"+id+"/pause", nil, nil)
	return err
}

// Connect returns a running sandbox, woken if it slept. Zero is the daemon's own timeout.
func (c *Client) Connect(ctx context.Context, id string, timeout time.Duration) (openapi.Sandbox, error) {
	var s openapi.Sandbox
	in := map[string]any{}
	if timeout > 0 {
		in["timeout"] = int(timeout.Seconds())
	}
	_, err := c.do(ctx, http.MethodPost, "/v2/sandboxes/"+id+"/connect", in, &s)
	return s, err
}

// Refresh gives a running sandbox at least d from now.
func (c *Client) Refresh(ctx context.Context, id string, d time.Duration) error {
	_, err := c.do(ctx, http.MethodPost, "/sandboxes/"+id+"/refreshes", map[string]int{"duration": int(d.Seconds())}, nil)
	return err
}

// Template tells of the template that a name or id means.
func (c *Client) Template(ctx context.Context, ref string) (openapi.Template, error) {
	var t openapi.Template
	_, err := c.do(ctx, http.MethodGet, "/templates/"+url.PathEscape(ref), nil, &t)
	return t, err
}

// Logs tells what happened to a sandbox, oldest first.
func (c *Client) Logs(ctx context.Context, id string) ([]openapi.LogEntry, error) {
	var answer struct{ Logs []openapi.LogEntry }
	_, err := c.do(ctx, http.MethodGet, "/v2/sandboxes/"+url.PathEscape(id)+"/logs?limit=1000", nil, &answer)
	return answer.Logs, err
}

// Measure measures a sandbox. One that does not run is a conflict.
func (c *Client) Measure(ctx context.Context, id string) (openapi.SandboxMetric, error) {
	var answer struct {
		Sandboxes map[string]openapi.SandboxMetric
	}
	if _, err := c.do(ctx, http.MethodGet, "/sandboxes/metrics?sandbox_ids="+url.QueryEscape(id), nil, &answer); err != nil {
		return openapi.SandboxMetric{}, err
	}
	m, ok := answer.Sandboxes[id]
	if !ok {
		return m, &Error{Status: http.StatusConflict, Message: "sandbox " + id + " does not run, so that there is nothing to measure"}
	}
	return m, nil
}

// ForkReport is what a fork did to the sandbox that was forked.
type ForkReport struct {
	Snapshot  string
	StoppedMS float64
}

// Fork makes children of a sandbox.
func (c *Client) Fork(ctx context.Context, id string, n int, timeout time.Duration) ([]openapi.ForkResult, ForkReport, error) {
	var forks []openapi.ForkResult
	header, err := c.do(ctx, http.MethodPost, "/sandboxes/"+id+"/fork", openapi.ForkSandboxJSONBody{Count: n, Timeout: openapi.Seconds(timeout.Seconds())}, &forks)
	if err != nil {
		return nil, ForkReport{}, err
	}
	stopped, _ := strconv.ParseFloat(header.Get("Spore-Stopped-Ms"), 64)
	return forks, ForkReport{Snapshot: header.Get("Spore-Snapshot"), StoppedMS: stopped}, nil
}

// Agent returns a client of the agent in a sandbox that Create or Connect has returned.
func (c *Client) Agent(s openapi.Sandbox) *guest.Client {
	return guest.NewClientVia(agentWay{c, s})
}

// agentWay sends requests to one sandbox's agent.
type agentWay struct {
	c *Client
	s openapi.Sandbox
}

// RoundTrip implements [http.RoundTripper].
func (a agentWay) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	base, err := url.Parse(a.c.base)
	if err != nil {
		return nil, err
	}
	r.URL.Scheme, r.URL.Host, r.Host = base.Scheme, base.Host, base.Host
	r.Header.Set(proxy.HeaderSandbox, a.s.SandboxID)
	r.Header.Set(proxy.HeaderPort, strconv.Itoa(proxy.AgentPort))
	if a.s.EnvdAccessToken != "" {
		r.Header.Set(proxy.HeaderToken, a.s.EnvdAccessToken)
	}
	return a.c.agents.RoundTrip(r)
}

// DialPort connects to a TCP port inside of a sandbox.
func (c *Client) DialPort(ctx context.Context, id string, port int) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, c.network, c.address)
	if err != nil {
		return nil, fmt.Errorf("speaking to the daemon: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	upgraded, err := c.upgrade(conn, id, port)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return upgraded, nil
}

func (c *Client) upgrade(conn net.Conn, id string, port int) (net.Conn, error) {
	req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("%s/spore/v1/sandboxes/%s/dial?port=%d", c.base, id, port), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", sandboxapi.DialProtocol)
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("speaking to the daemon: %w", err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("reading the daemon's answer: %w", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		data, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		return nil, asError(res.StatusCode, data)
	}
	return &buffered{conn, r}, nil
}

// buffered is a connection of which something may have been read already.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// CloseWrite tells the other end that there will be no more.
func (b *buffered) CloseWrite() error {
	if c, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
