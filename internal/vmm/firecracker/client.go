package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// How long an answer may take. Those that read or write the memory of a big guest take minutes, all others milliseconds; the rest is for busy hosts.
const (
	quick = 30 * time.Second
	long  = 10 * time.Minute
)

// maxAnswer and maxHeader bound what is read of an answer, in bytes: a compromised VMM must not make us allocate at will.
const (
	maxAnswer = 1 << 20
	maxHeader = 64 << 10
)

// maxFault is how much of a refusal is told.
const maxFault = 4 << 10

// client speaks to the API of one Firecracker.
type client struct{ http *http.Client }

func newClient(dial func(context.Context) (net.Conn, error)) *client {
	return &client{&http.Client{
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			MaxConnsPerHost:        1,
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // it has nowhere to send us
	}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// APIError is Firecracker's refusal of a request.
type APIError struct {
	Method, Path string
	Status       int
	Fault        string // Firecracker's words
}

func (e *APIError) Error() string {
	return fmt.Sprintf("firecracker refuses %s %s (%d): %s", e.Method, e.Path, e.Status, e.Fault)
}

// call sends a request and decodes the answer into out unless that is nil.
func (c *client) call(ctx context.Context, limit time.Duration, method, path string, body, out any) error {
	timed, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %v", limit))
	defer cancel()
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encoding %s %s: %w", method, path, err)
		}
		content = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(timed, method, "http://localhost"+path, content)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		if timed.Err() != nil {
			return fmt.Errorf("%s %s: %w", method, path, context.Cause(timed))
		}
		// Only its death closes Firecracker's socket.
		return fmt.Errorf("%s %s: %w: %w", method, path, vmm.ErrDead, errors.Unwrap(err))
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil && timed.Err() != nil {
		return fmt.Errorf("%s %s: %w", method, path, context.Cause(timed))
	}
	if err != nil {
		return fmt.Errorf("reading the answer to %s %s: %w: %w", method, path, vmm.ErrDead, err)
	}
	return decode(method, path, res.StatusCode, answer, out)
}

// decode reads an answer.
func decode(method, path string, status int, answer []byte, out any) error {
	switch {
	case status >= 300:
		var fault struct {
			Message string `json:"fault_message"`
		}
		if json.Unmarshal(answer, &fault) != nil || fault.Message == "" {
			fault.Message = fmt.Sprintf("%.200q", answer)
		}
		return &APIError{Method: method, Path: path, Status: status, Fault: fault.Message[:min(len(fault.Message), maxFault)]}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("decoding the answer to %s %s: %w", method, path, err)
	}
	return nil
}

func (c *client) put(ctx context.Context, path string, body any) error {
	return c.call(ctx, quick, http.MethodPut, path, body, nil)
}

func (c *client) patch(ctx context.Context, path string, body any) error {
	return c.call(ctx, quick, http.MethodPatch, path, body, nil)
}
