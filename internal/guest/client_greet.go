package guest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/sporevm/spore/internal/guest/api"
)

// wake sends one wake: ahead of HTTP/2 as long as the session has not come to
// that, which spares a guest that has just been thawed most of its work.
func (c *Client) wake(ctx context.Context, id api.Identity) (api.WakeReport, error) {
	c.mu.Lock()
	if c.via == nil && c.h2 == nil && c.err == nil {
		defer c.mu.Unlock()
		return c.wakeFrame(ctx, id)
	}
	c.mu.Unlock()
	var report api.WakeReport
	err := c.call(ctx, http.MethodPost, api.PathWake, id, &report)
	return report, err
}

// wakeFrame exchanges one wake for its answer. c.mu is held. A failure of the
// exchange itself ends the session: nobody knows how far it got.
func (c *Client) wakeFrame(ctx context.Context, id api.Identity) (api.WakeReport, error) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		c.stream.SetDeadline(time.Unix(1, 0))
	})
	answer, err := c.exchange(id.AppendWire(nil), id.Generation)
	if !stop() {
		<-interrupted
		if err == nil { // just in time
			err = c.stream.SetDeadline(time.Time{})
		} else {
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		c.err = ErrClosed
		c.conn.Close()
		return api.WakeReport{}, fmt.Errorf("handing the guest an identity: %w: %w", ErrClosed, err)
	}
	if answer.Status != 0 {
		return answer.Report, &Error{Status: answer.Status, Message: answer.Message}
	}
	return answer.Report, nil
}

// exchange sends a wake's frame and waits for the one that answers it.
func (c *Client) exchange(payload []byte, generation string) (api.WakeAnswer, error) {
	var frame []byte
	if !c.greeted {
		frame = append(frame, api.Preface...)
	}
	c.greeted = true
	if _, err := c.stream.Write(api.AppendFrame(frame, api.WakeFrame, payload)); err != nil {
		return api.WakeAnswer{}, err
	}
	return c.stream.answer(generation)
}

// afterGreeting is the connection as HTTP/2 is to use it: without the preface if
// a wake has sent that.
func (c *Client) afterGreeting() net.Conn {
	if !c.greeted {
		return c.stream
	}
	return &withoutPreface{Conn: c.stream, skip: len(api.Preface)}
}

// withoutPreface drops the first bytes that are written.
type withoutPreface struct {
	net.Conn
	skip int
}

// Write is called by one goroutine at a time, as HTTP/2 does.
func (w *withoutPreface) Write(p []byte) (int, error) {
	skipped := min(w.skip, len(p))
	w.skip -= skipped
	if skipped == len(p) {
		return skipped, nil
	}
	n, err := w.Conn.Write(p[skipped:])
	return skipped + n, err
}
