package boot

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
)

const (
	portBuffer = 4096 // bytes; the size of the kernel's buffers for the port
	reopenTime = 100 * time.Millisecond
)

// session is one connection of the host.
//
// A host that closes the port and opens it again at once may do both between two looks of ours, and the kernel keeps no count; after a snapshot it is
// certain, because the guest stands still meanwhile. So the session follows the stream's framing: a client's greeting where a frame ought to start ends
// it, and goes to the next session.
type session struct {
	port *Port
	done chan struct{}  // closed by Close
	busy sync.WaitGroup // reads and writes under way

	mu      sync.Mutex
	buf     []byte
	pending []byte // bytes to be delivered before the port is read again; may be part of buf
	early   bool   // it began before the kernel told of the host's opening the port; until the port has shown as closed once
	ended   bool   // the host has closed the port or has started anew
	closed  bool
	frames  frames

	reopened time.Time // when an early session's port had shown as closed, and open again
}

// frames finds the boundaries of frames in what a client sends.
type frames struct {
	skip  int64 // bytes to come of the greeting or of the current frame's payload
	head  []byte
	begun bool
}

// inside reports whether a frame, or the greeting, has begun and not ended.
func (f *frames) inside() bool { return f.begun && (f.skip > 0 || len(f.head) > 0) }

// next advances over p and returns how much of it belongs to this client.
//
// The greeting's P as the length of a frame would be five megabytes, which we don't allow: at a boundary it can only be a new client's.
func (f *frames) next(p []byte) (n int) {
	f.begun = f.begun || len(p) > 0
	for n < len(p) {
		if f.skip > 0 {
			step := min(f.skip, int64(len(p)-n))
			f.skip -= step
			n += int(step)
			continue
		}
		if len(f.head) == 0 && p[n] == api.Preface[0] {
			return n
		}
		step := min(api.FrameHeader-len(f.head), len(p)-n)
		f.head = append(f.head, p[n:n+step]...)
		n += step
		if len(f.head) < api.FrameHeader {
			return n
		}
		f.skip = int64(f.head[0])<<16 | int64(f.head[1])<<8 | int64(f.head[2])
		f.head = f.head[:0]
	}
	return n
}

func newSession(p *Port, left []byte) *session {
	return &session{port: p, done: make(chan struct{}), pending: left, early: len(left) > 0, frames: frames{skip: int64(len(api.Preface))}}
}

// Read returns bytes of this session only.
func (s *session) Read(p []byte) (int, error) {
	if !s.enter() {
		return 0, io.EOF
	}
	defer s.busy.Done()
	return s.read(p)
}

// enter begins a read or a write, unless the session is over: then the port may be another's.
func (s *session) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.closed {
		return false
	}
	s.busy.Add(1)
	return true
}

func (s *session) read(p []byte) (int, error) {
	n, err := s.fill(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 {
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			s.ended = true
		}
		return 0, err
	}
	kept := s.frames.next(p[:n])
	if kept < n {
		s.leave(p[kept:n])
	}
	if kept == 0 {
		return 0, io.EOF
	}
	return kept, nil
}

// discard reads and throws away, up to the session's end. What comes may follow no framing at all, but a greeting comes as the beginning of a read.
func (s *session) discard(buf []byte) {
	n, err := s.fill(buf)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case n == 0 && err != nil:
		s.ended = true
	case bytes.HasPrefix(buf[:n], []byte(api.Preface)):
		s.leave(buf[:n])
	}
}

// leave ends the session: b, and what is pending after it, are the next one's.
func (s *session) leave(b []byte) {
	s.ended = true
	s.port.keep(append(bytes.Clone(b), s.pending...))
	s.pending = nil
}

// fill gets bytes from what is pending or from the port.
func (s *session) fill(p []byte) (int, error) {
	s.mu.Lock()
	n := copy(p, s.pending)
	s.pending = s.pending[n:]
	s.mu.Unlock()
	if n > 0 {
		return n, nil
	}
	// The port gives out one of its buffers at a time, and what a host sends first is the beginning of one. A shorter read would hide that.
	into := p
	if len(p) < portBuffer {
		if s.buf == nil {
			s.buf = make([]byte, portBuffer)
		}
		into = s.buf
	}
	n, again, err := s.receive(into)
	if n == 0 {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.startsAnew(into[:n], again) {
		s.leave(into[:n])
		return 0, io.EOF
	}
	if len(p) < portBuffer {
		taken := copy(p, into[:n])
		s.pending = into[taken:n]
		n = taken
	}
	return n, nil
}

// receive reads from the port. again is set if the port was closed for a moment before that.
func (s *session) receive(p []byte) (n int, again bool, err error) {
	n, err = s.readPort(p)
	s.mu.Lock()
	early := s.early
	s.mu.Unlock()
	if err != io.EOF || !early {
		return n, false, err
	}
	// Bytes overtake the news of closing and opening, which the kernel handles in a worker. This session began by its bytes, so the host's closing of
	// the one before may be what shows now, and its opening follows at once.
	back := s.port.reopened(reopenTime)
	s.mu.Lock()
	s.early, s.reopened = false, time.Now()
	s.mu.Unlock()
	if !back {
		return 0, false, io.EOF
	}
	n, err = s.readPort(p)
	return n, true, err
}

// readPort reads from the port, and again each time it is nudged.
func (s *session) readPort(p []byte) (int, error) {
	for {
		n, err := s.port.f.Read(p)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !s.port.nudged.Swap(false) {
			return n, err
		}
		s.mu.Lock()
		closed := s.closed // then the deadline is there to stay
		if !closed {
			err = s.port.f.SetReadDeadline(time.Time{})
		}
		s.mu.Unlock()
		if closed || err != nil {
			return n, err
		}
	}
}

// startsAnew reports whether b, as it came from the port, is the beginning of another session although the framing does not say so: the host has gone in
// the middle of a frame. A greeting inside of a frame could be somebody's payload as well, but not one that a wake follows, as our own client's does.
func (s *session) startsAnew(b []byte, again bool) bool {
	if !bytes.HasPrefix(b, []byte(api.Preface)) {
		return false
	}
	const kindAt = len(api.Preface) + 3
	return again || s.frames.inside() && len(b) > kindAt && b[kindAt] == api.WakeFrame
}

// over reports whether the host has ended the session.
func (s *session) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// Write sends bytes to the host. Once the host has closed the port or the session is closed it fails, so that nothing of this session can reach the
// next one.
func (s *session) Write(p []byte) (int, error) {
	if !s.enter() {
		return 0, net.ErrClosed
	}
	defer s.busy.Done()
	written := 0
	for written < len(p) {
		n, err := s.port.write(p[written:])
		written += n
		if errors.Is(err, unix.EPIPE) && s.newsFollows() {
			continue
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// newsFollows reports, for a closed port, whether that is old news: see fill.
func (s *session) newsFollows() bool {
	s.mu.Lock()
	early := s.early || time.Since(s.reopened) < reopenTime
	s.mu.Unlock()
	return early && s.port.reopened(reopenTime)
}

// Close ends the session and returns when its last read and write have.
func (s *session) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	// Wakes whoever is inside a read or a write of the port.
	err := s.port.f.SetDeadline(time.Unix(1, 0))
	s.busy.Wait()
	close(s.done)
	return err
}

func (s *session) LocalAddr() net.Addr  { return s.port.Addr() }
func (s *session) RemoteAddr() net.Addr { return portAddr("host") }

func (s *session) SetDeadline(t time.Time) error     { return s.deadline(s.port.f.SetDeadline, t) }
func (s *session) SetReadDeadline(t time.Time) error { return s.deadline(s.port.f.SetReadDeadline, t) }
func (s *session) SetWriteDeadline(t time.Time) error {
	return s.deadline(s.port.f.SetWriteDeadline, t)
}

// deadline refuses to touch the port on behalf of a session that is over: the port may be another's by now.
func (s *session) deadline(set func(time.Time) error, t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	return set(t)
}
