package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/filesystem/filesystemconnect"
	"github.com/sporevm/spore/internal/guest/api/process/processconnect"
)

// baseURL names the guest in requests. Nothing resolves it: a session has one
// connection.
const baseURL = "http://guest"

// maxFrame is the largest HTTP/2 frame we take. Large frames cost an emulated
// guest fewer instructions per byte. The windows are net/http's own: 4 MiB a
// stream, and so much for the session that a stream whose reader is slow never
// holds up the others.
const maxFrame = 1 << 20

// ErrClosed is the error of calls on a session that has ended.
var ErrClosed = errors.New("the session with the guest has ended")

// Client is one HTTP/2 session with a guest agent over one byte stream. It ends
// with the stream, or when the machine freezes: a thawed guest gets a new one.
// Its methods may be called concurrently.
type Client struct {
	conn   net.Conn // nil: the session is somebody else's
	stream *settled // conn from the agent's first byte on
	via    http.RoundTripper
	http   *http.Client

	slack atomic.Int64 // nanoseconds, see ClockSlack

	mu      sync.Mutex
	greeted bool             // the preface is sent
	h2      *http.ClientConn // nil: not started
	err     error            // why there will be none

	processes processconnect.ProcessClient
	files     filesystemconnect.FilesystemClient
}

// NewClient makes a session of conn, which it owns from here on. Nothing is
// sent before the first call.
func NewClient(conn net.Conn) *Client {
	c := &Client{conn: conn, stream: &settled{Conn: conn}}
	c.connect()
	return c
}

// NewClientVia returns a client of an agent whose session another process has:
// requests reach it through via, whatever host their URL names. What only the
// holder of the session may do, waking and stilling, is not for such a client.
func NewClientVia(via http.RoundTripper) *Client {
	c := &Client{via: via}
	c.connect()
	return c
}

// connect makes the clients of the agent's services.
func (c *Client) connect() {
	c.http = &http.Client{
		Transport: c,
		// What the guest says is not to lead the host elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	opts := []connect.ClientOption{
		connect.WithAcceptCompression("gzip", nil, nil), // costs the guest more than it saves
		connect.WithReadMaxBytes(64 << 20),              // a listing of many entries
	}
	c.processes = processconnect.NewProcessClient(c.http, baseURL, opts...)
	c.files = filesystemconnect.NewFilesystemClient(c.http, baseURL, opts...)
}

// session starts HTTP/2 on the connection, once.
func (c *Client) session() (*http.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.h2 == nil && c.err == nil {
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		t := &http.Transport{
			Protocols:   &protocols,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return c.afterGreeting(), nil },
			HTTP2: &http.HTTP2Config{
				StrictMaxConcurrentRequests: true,
				MaxReadFrameSize:            maxFrame,
			},
			DisableCompression: true,
		}
		c.h2, c.err = t.NewClientConn(context.Background(), "http", "guest:80")
	}
	if c.err != nil {
		return nil, fmt.Errorf("opening the session with the guest: %w", c.err)
	}
	return c.h2, nil
}

// RoundTrip sends one request over the session, whatever host its URL names. It
// makes a Client the transport of a reverse proxy.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	way := c.via
	if way == nil {
		h2, err := c.session()
		if err != nil {
			if req.Body != nil {
				req.Body.Close()
			}
			return nil, err
		}
		way = h2
	}
	res, err := way.RoundTrip(req)
	if err != nil {
		return nil, c.lost(err)
	}
	res.Body = &bulkBody{body: res.Body}
	return res, nil
}

// HTTP returns a client whose requests, for any host, go to the guest.
func (c *Client) HTTP() *http.Client { return c.http }

// Close ends the session and closes its connection. Calls under way fail;
// processes in the guest go on.
func (c *Client) Close() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close() // ends a wake that waits, and has the lock
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.h2 != nil {
		c.h2.Close()
	}
	if c.err == nil {
		c.err = ErrClosed
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Health returns nil once the agent answers.
func (c *Client) Health(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, api.PathHealth, nil, nil)
}

// Quiesce makes the guest still, ready to be frozen. Only Wake ends that.
func (c *Client) Quiesce(ctx context.Context, o api.QuiesceOptions) (api.QuiesceReport, error) {
	var report api.QuiesceReport
	err := c.call(ctx, http.MethodPost, api.PathQuiesce, o, &report)
	return report, err
}

// Stats measures the guest.
func (c *Client) Stats(ctx context.Context) (api.Stats, error) {
	var stats api.Stats
	err := c.call(ctx, http.MethodGet, api.PathStats, nil, &stats)
	return stats, err
}

// call sends one of the plain requests, with JSON both ways. Nil bodies are none.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("asking the guest for %s: %w", path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, baseURL+path, body)
	if err != nil {
		return fmt.Errorf("asking the guest for %s: %w", path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, api.MaxJSONBody))
	if err != nil {
		return fmt.Errorf("reading the guest's answer for %s: %w", path, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("reading the guest's answer for %s: %w", path, err)
	}
	return nil
}

// do sends a request and turns answers of 400 and above into errors. Closing
// the answer's body never waits for a request body that is stuck.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	res, err := c.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("asking the guest for %s: %w", req.URL.Path, err)
	}
	res.Body = &cancelBody{res.Body.(*bulkBody), cancel}
	if res.StatusCode < 400 {
		return res, nil
	}
	defer res.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(res.Body, api.MaxJSONBody))
	e := &Error{Status: res.StatusCode}
	var body api.Error
	if json.Unmarshal(data, &body) == nil {
		e.Message = body.Message
	}
	return nil, e
}

// cancelBody ends its request when it is closed.
type cancelBody struct {
	*bulkBody
	cancel context.CancelFunc
}

func (b *cancelBody) Close() error {
	b.cancel()
	return b.bulkBody.Close()
}
