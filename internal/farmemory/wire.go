// Package farmemory is the memory of snapshots that are far away: a file to be mapped by machines, whose pages come when they are touched, verified, or
// a little before.
//
// The file is served over FUSE by a process of its own, since a process must not fault on its own file. [Servers] starts such processes, [Serve] is what
// they do. Both ends of a socket pair tell each other, a line of JSON each: the request, with the header of the memory behind it; the answer, with the
// file's descriptor; and from then on faults, and questions about what was touched. The server ends when the socket does.
package farmemory

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

// SocketFD is the descriptor by which a server is given its end of the socket pair.
const SocketFD = 3

// request is what a server is to serve.
type request struct {
	Header   int  `json:"header"`   // bytes of the memory's header that follow the line
	Prefetch bool `json:"prefetch"` // fetch what is known to be touched before it is
	Record   bool `json:"record"`   // keep account of what is touched, and hand over nothing else
}

// What the server is told or asked later.
const (
	askPages = "pages" // which pages were touched, in order
	sayNoted = "noted" // a fault was taken notice of
)

type question struct {
	Ask string `json:"ask"`
}

// message is what a server says; one of the fields is set.
type message struct {
	Ready       bool            `json:"ready,omitempty"` // the descriptor comes along
	Refused     string          `json:"refused,omitempty"`
	Unsupported bool            `json:"unsupported,omitempty"` // refused because this host can't
	Fault       *block.Told     `json:"fault,omitempty"`
	Pages       *snapshot.Pages `json:"pages,omitempty"`
}

// send writes a line.
func send(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// limits of what either end reads.
const (
	maxLine   = 16 << 20 // bytes; a million pages each on its own
	maxHeader = block.MaxHeaderSize
)

func (r request) check() error {
	if r.Header <= 0 || r.Header > maxHeader {
		return fmt.Errorf("a header of %d bytes", r.Header)
	}
	return nil
}
