package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
)

// lingerTime is how long the guest's side may go on after ours was closed, so
// that what was written last arrives.
const lingerTime = time.Second

// Dial connects to a TCP port on the guest's loopback. ctx bounds the connect
// only. The connection ends with the session; its CloseWrite reaches the peer.
func (c *Client) Dial(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("dialing the guest: port %d is not between 1 and 65535", port)
	}
	// A socket pair gives callers all that a connection can do, deadlines and
	// half-closing included; its far end is copied to and from the stream.
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("dialing port %d in the guest: %w", port, err)
	}
	life, cancel := context.WithCancel(context.Background())
	fail := func(err error) (net.Conn, error) {
		cancel()
		ours.Close()
		theirs.Close()
		return nil, fmt.Errorf("dialing port %d in the guest: %w", port, err)
	}
	req, err := http.NewRequestWithContext(life, http.MethodPost, baseURL+api.PathDial+"?port="+strconv.Itoa(port), dialBody{ours})
	if err != nil {
		return fail(err)
	}
	req.ContentLength = -1
	stop := context.AfterFunc(ctx, cancel)
	res, err := c.do(req)
	if !stop() && err == nil {
		res.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fail(err)
	}
	go func() {
		defer cancel()
		defer ours.Close()
		defer res.Body.Close()
		if _, err := io.CopyBuffer(onlyWriter{ours}, onlyReader{res.Body}, make([]byte, 64<<10)); err != nil {
			return
		}
		// The guest has said all; what the caller still says goes on until it
		// closes, which ends the reading of the request's body.
		ours.CloseWrite()
		<-life.Done()
	}()
	return &dialed{UnixConn: theirs, port: port, cancel: cancel}, nil
}

// dialed is the caller's end of a dialed connection.
type dialed struct {
	*net.UnixConn
	port   int
	cancel context.CancelFunc
}

func (d *dialed) Close() error {
	err := d.UnixConn.Close()
	time.AfterFunc(lingerTime, d.cancel)
	return err
}

func (d *dialed) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: d.port}
}

// dialBody is what the caller writes, as a request's body.
type dialBody struct{ conn *net.UnixConn }

func (b dialBody) Read(p []byte) (int, error) { return b.conn.Read(p) }

// Close ends a read that waits. The other direction may still be in use.
func (b dialBody) Close() error { return b.conn.SetReadDeadline(time.Unix(1, 0)) }

type onlyReader struct{ io.Reader }

type onlyWriter struct{ io.Writer }

func socketPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	a, err = unixConn(fds[0])
	b, err2 := unixConn(fds[1])
	if err := errors.Join(err, err2); err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	return a, b, nil
}

func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socketpair")
	defer f.Close() // FileConn takes a copy
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
