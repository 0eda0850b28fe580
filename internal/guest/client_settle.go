package guest

import (
	"bytes"
	"net"

	"github.com/sporevm/spore/internal/guest/api"
)

// settled is a connection to the agent whose first bytes to be read are the agent's greeting.
//
// The port behind it has no sessions of its own. Where the host opens it anew while the agent is still answering the session before, the rest of that
// answer may come first, from any place within a frame. HTTP/2 has a server begin with its settings, so what comes before those is dropped.
type settled struct {
	net.Conn
	found bool
	seen  []byte // not decided on yet, or to be given out
}

// The beginning of a SETTINGS frame that has content: its length of less than 256 bytes, its type, no flags, stream zero, and the first setting's number.
const (
	settingsHeader = 9
	settingsMin    = settingsHeader + 6
	settingsType   = 4
	settingsLast   = 9 // the highest number of a setting that is in use
)

// Read is called by one goroutine at a time, as HTTP/2 does.
func (s *settled) Read(p []byte) (int, error) {
	for !s.found {
		buf := make([]byte, 4096)
		n, err := s.Conn.Read(buf)
		s.seen = append(s.seen, buf[:n]...)
		at := findSettings(s.seen)
		s.found = at >= 0
		if s.found {
			s.seen = s.seen[at:]
		} else if drop := len(s.seen) - (settingsMin - 1); drop > 0 {
			s.seen = append(s.seen[:0], s.seen[drop:]...)
		}
		if err != nil && !s.found {
			return 0, err
		}
	}
	if len(s.seen) > 0 {
		n := copy(p, s.seen)
		s.seen = s.seen[n:]
		return n, nil
	}
	return s.Conn.Read(p)
}

// maxAnswer bounds the answer to a wake, which holds little but the reason of a failure.
const maxAnswer = 64 << 10

// answer returns the answer to a wake of this generation. Nothing else can be mistaken for it, so all that comes before it is dropped.
func (s *settled) answer(generation string) (api.WakeAnswer, error) {
	buf := make([]byte, 4096)
	for {
		if a, end := findAnswer(s.seen, generation); end > 0 {
			s.found, s.seen = true, s.seen[end:]
			return a, nil
		}
		if over := len(s.seen) - maxAnswer - api.FrameHeader; over > 0 {
			s.seen = append(s.seen[:0], s.seen[over:]...)
		}
		n, err := s.Conn.Read(buf)
		if n == 0 && err != nil {
			return api.WakeAnswer{}, err
		}
		s.seen = append(s.seen, buf[:n]...)
	}
}

// findAnswer looks for the answer in b and returns it with the place of its end; zero if it is not there, or not all of it. A guest that could not even
// read the wake names no generation.
func findAnswer(b []byte, generation string) (a api.WakeAnswer, end int) {
	for at := 0; at+api.FrameHeader <= len(b); at++ {
		if b[at+3] != api.WakeFrame {
			continue
		}
		head := at + api.FrameHeader
		_, size := api.ParseFrameHeader([api.FrameHeader]byte(b[at:head]))
		if size > maxAnswer || size > len(b)-head {
			continue
		}
		a, err := api.ParseWakeAnswer(b[head : head+size])
		if err == nil && (a.Report.Generation == generation || a.Status != 0 && a.Report.Generation == "") {
			return a, head + size
		}
	}
	return api.WakeAnswer{}, 0
}

// findSettings returns where in b the first SETTINGS frame of a server begins; -1 if none does.
func findSettings(b []byte) int {
	for at := 0; at+settingsMin <= len(b); at++ {
		if !bytes.HasPrefix(b[at:], []byte{0, 0}) {
			continue
		}
		h := b[at : at+settingsMin]
		size := h[2]
		if size > 0 && size%6 == 0 && bytes.Equal(h[3:settingsHeader], []byte{settingsType, 0, 0, 0, 0, 0}) && h[9] == 0 && h[10] > 0 && h[10] <= settingsLast {
			return at
		}
	}
	return -1
}
