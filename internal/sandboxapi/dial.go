package sandboxapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// DialProtocol is what a client that dials a port wants its connection upgraded to.
const DialProtocol = "spore-dial"

// dialTimeout bounds the connect to a port in a guest.
const dialTimeout = 15 * time.Second

func (s routes) DialSandbox(w http.ResponseWriter, r *http.Request, id string, q openapi.DialSandboxParams) {
	if r.ProtoMajor != 1 || !strings.EqualFold(r.Header.Get("Upgrade"), DialProtocol) {
		w.Header().Set("Upgrade", DialProtocol)
		answer.Error(w, http.StatusUpgradeRequired, "a dial is an upgrade of an HTTP/1.1 connection", "send Connection: Upgrade and Upgrade: "+DialProtocol)
		return
	}
	s.with(w, r, id, func(fleet.Info) error {
		ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
		defer cancel()
		port, err := s.proxy.Dial(ctx, id, q.Port)
		if ge := (*guest.Error)(nil); errors.As(err, &ge) && ge.Status == http.StatusBadGateway {
			answer.Error(w, http.StatusBadGateway, fmt.Sprintf("nothing listens on port %d of sandbox %s", q.Port, id), "start the server there first")
			return nil
		}
		if err != nil {
			return err
		}
		defer port.Close()
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return fmt.Errorf("taking over the connection: %w", err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Time{})
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", DialProtocol); err != nil {
			return nil
		}
		splice(conn, buffered, port)
		return nil
	})
}

// splice copies both ways until both have ended. Each end is passed on by itself: a client may have said all long before it has heard all.
func splice(client net.Conn, buffered io.Reader, port net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.Copy(port, buffered); err != nil {
			port.Close() // the client is gone
			return
		}
		closeWrite(port)
	}()
	if _, err := io.Copy(client, port); err != nil {
		client.Close()
	}
	closeWrite(client)
	<-done
}

func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}
