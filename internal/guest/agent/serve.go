package agent

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
)

// Sizes of the HTTP/2 session. Large frames keep the number of instructions per
// byte low, which is what counts under software emulation.
//
// A stream's window holds what its handler has not taken yet, and counts against
// the connection's too: the latter has room for sessionWindow/streamWindow
// handlers that are stuck, say on processes that do not read their input, before
// they hold up the others. It is more than net/http's documentation promises to
// take; a test with 40 of them tells if it ever stops doing so.
const (
	maxFrame      = 1 << 20
	streamWindow  = 1 << 20
	sessionWindow = 64 << 20
	maxStreams    = 1000
)

// ServeConn speaks HTTP/2 without TLS on conn until the peer goes away, ctx
// ends, or the connection breaks; then conn is closed. Handlers of the session
// see their context end. A Server also answers the wakes that a host sends ahead
// of HTTP/2.
func ServeConn(ctx context.Context, conn net.Conn, h http.Handler) error {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler:   h,
		Protocols: &protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReadFrameSize:              maxFrame,
			MaxReceiveBufferPerConnection: sessionWindow,
			MaxReceiveBufferPerStream:     streamWindow,
		},
		ErrorLog: log.New(io.Discard, "", 0), // a console of a guest is no place for a peer's faults
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	if w, ok := h.(waker); ok {
		greeted, err := greet(ctx, conn, w)
		if err != nil {
			return sessionError(ctx, err)
		}
		conn = greeted
	}
	return sessionError(ctx, srv.Serve(newOneConn(conn)))
}

// sessionError tells faults from the ways in which every session ends.
func sessionError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errListenerDone), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return nil
	}
	return err
}

// oneConn is a listener with a single connection to give. Accept gives it, and
// then waits until it was closed, so that Serve lasts as long as the session.
type oneConn struct {
	mu   sync.Mutex
	conn net.Conn
	addr net.Addr
	done chan struct{}
	once sync.Once
}

func newOneConn(c net.Conn) *oneConn {
	return &oneConn{conn: c, addr: c.LocalAddr(), done: make(chan struct{})}
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	c := l.conn
	l.conn = nil
	l.mu.Unlock()
	if c != nil {
		return &watchedConn{Conn: c, closed: l.finish}, nil
	}
	<-l.done
	return nil, errListenerDone
}

func (l *oneConn) finish()        { l.once.Do(func() { close(l.done) }) }
func (l *oneConn) Close() error   { l.finish(); return nil }
func (l *oneConn) Addr() net.Addr { return l.addr }

// watchedConn tells its listener when the server has closed it.
type watchedConn struct {
	net.Conn
	closed func()
}

func (c *watchedConn) Close() error {
	err := c.Conn.Close()
	c.closed()
	return err
}
