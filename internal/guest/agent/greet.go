package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/sporevm/spore/internal/guest/api"
)

// waker is a handler that takes wakes ahead of HTTP.
type waker interface {
	wakeFrame(ctx context.Context, payload []byte) []byte
}

// wakeFrame runs one wake and returns the payload of the answer.
func (s *Server) wakeFrame(ctx context.Context, payload []byte) []byte {
	id, err := api.ParseIdentity(payload)
	a := api.WakeAnswer{}
	switch {
	case err != nil:
		a.Status = http.StatusBadRequest
	case s.options.Wake == nil:
		a.Status, err = http.StatusNotImplemented, errors.New("a wake is not served here")
	default:
		a.Report, err = s.wake(ctx, id)
		if errors.Is(err, ErrInvalid) {
			a.Status = http.StatusBadRequest
		} else if err != nil {
			a.Status = http.StatusInternalServerError
		}
	}
	if err != nil {
		a.Message = err.Error()
	}
	return a.AppendWire(nil)
}

// greet answers the wakes that come before HTTP/2 does (see api.Preface). It
// returns the connection as HTTP/2 is to find it.
func greet(ctx context.Context, conn net.Conn, w waker) (net.Conn, error) {
	// A client sends its first frame along with the preface, so both can be
	// awaited in one.
	head := make([]byte, len(api.Preface)+api.FrameHeader)
	if n, err := io.ReadFull(conn, head); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return &prefixed{conn, head[:n]}, nil
		}
		return nil, err
	}
	frame := head[len(api.Preface):]
	for first := true; string(head[:len(api.Preface)]) == api.Preface; first = false {
		kind, size := api.ParseFrameHeader([api.FrameHeader]byte(frame))
		if kind != api.WakeFrame {
			break
		}
		if size > api.MaxJSONBody {
			return nil, fmt.Errorf("a wake of %d bytes is larger than %d", size, api.MaxJSONBody)
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(conn, payload); err != nil {
			return nil, err
		}
		var answer []byte
		if first {
			answer = api.AppendFrame(answer, api.Settings, []byte{0, 5, 0, 0, 0x40, 0}) // what holds anyway
		}
		answer = api.AppendFrame(answer, api.WakeFrame, w.wakeFrame(ctx, payload))
		if _, err := conn.Write(answer); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(conn, frame); err != nil {
			return nil, err
		}
	}
	return &prefixed{conn, head}, nil
}

// prefixed gives out bytes that were read before the connection's next ones.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}
