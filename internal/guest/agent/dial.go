package agent

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// dialTimeout bounds a connect within the guest, which is answered at once
// unless the listener's queue is full.
const dialTimeout = 10 * time.Second

// dialSize is how much moves at once between a dialed connection and its stream.
const dialSize = 64 << 10

// serveDial joins the request's body and the response's to a TCP connection to
// a port of the guest's loopback. 502: nobody listens there.
func (s *Server) serveDial(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
	if err != nil || port == 0 {
		writeError(w, http.StatusBadRequest, fmt.Errorf("port %q is not a number from 1 to 65535", r.URL.Query().Get("port")))
		return
	}
	if r.ProtoMajor < 2 {
		writeError(w, http.StatusHTTPVersionNotSupported, fmt.Errorf("a dial needs HTTP/2"))
		return
	}
	conn, err := dialLoopback(r, strconv.FormatUint(port, 10))
	if err != nil {
		writeError(w, http.StatusBadGateway, fmt.Errorf("dialing port %d in the guest: %w", port, err))
		return
	}
	defer conn.Close()
	rc := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	rc.Flush()

	go func() {
		// What the host sends; its end is passed on, the other way stays open.
		io.CopyBuffer(onlyWriter{conn}, r.Body, make([]byte, dialSize))
		conn.CloseWrite()
	}()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-r.Context().Done():
			conn.Close() // unblocks the read below
		case <-stop:
		}
	}()
	buf := make([]byte, dialSize)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			if rc.Flush() != nil {
				return
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // a reset must not look like an end
		}
	}
}

// onlyWriter hides the methods that would let io.Copy splice.
type onlyWriter struct{ io.Writer }

// dialLoopback tries both loopback addresses: some servers listen on one only.
func dialLoopback(r *http.Request, port string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(r.Context(), "tcp4", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		c6, err6 := d.DialContext(r.Context(), "tcp6", net.JoinHostPort("::1", port))
		if err6 != nil {
			return nil, err
		}
		conn = c6
	}
	return conn.(*net.TCPConn), nil
}
