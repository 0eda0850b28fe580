package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

// order is what a pager is told on its standard input, as JSON.
type order struct {
	Root         string `json:"root"` // its directory, for sockets alone
	Template     string `json:"template"`
	CacheBytes   int64  `json:"cache_bytes"`
	PageMillis   int64  `json:"page_millis"`   // how long a page may take from the image
	OrphanMillis int64  `json:"orphan_millis"` // how long it stays without Tracker and machines
}

// started is what it answers on its standard output, in one line.
type started struct {
	Error *block.Told `json:"error,omitempty"`
}

// Operations of a control connection. The Tracker asks; the pager answers with the
// number and the operation it was asked, and says what happens of itself with the number 0.
const (
	opHello    = "hello"    // the answer comes after a fork event for each fork
	opRegister = "register" // fork, uid → path
	opPrefetch = "prefetch" // fork, ranges: more of what its machine gets when it connects
	opRelease  = "release"  // fork
	opTouched  = "touched"  // fork, from → ranges, more
	opStats    = "stats"    // → stats
	opClose    = "close"    // end; answered before

	eventFork      = "fork"      // fork, path, and error if it has failed
	eventConnected = "connected" // fork, pid, with the process's pidfd
	eventFailed    = "failed"    // fork, error
)

// message is one packet of a control connection.
type message struct {
	ID     uint64      `json:"id,omitempty"`
	Op     string      `json:"op"`
	Fork   string      `json:"fork,omitempty"`
	UID    int         `json:"uid,omitempty"`
	PID    int         `json:"pid,omitempty"`
	Path   string      `json:"path,omitempty"`
	From   int         `json:"from,omitempty"`
	Ranges []Range     `json:"ranges,omitempty"`
	More   bool        `json:"more,omitempty"`
	Stats  *Stats      `json:"stats,omitempty"`
	Error  *block.Told `json:"error,omitempty"`

	process *process // with eventConnected
}

const (
	maxPacket    = 64 << 10
	sendPatience = 5 * time.Second
	rangeBatch   = 1024 // ranges in one packet, far below its limit
)

// Stats says what a pager has done so far.
type Stats struct {
	Forks      int   `json:"forks"`       // registered
	Connected  int   `json:"connected"`   // of which a machine has connected and runs
	Faults     int64 `json:"faults"`      // answered
	FramesRead int64 `json:"frames_read"` // from the image; the others were in the cache
	Prefetched int64 `json:"prefetched"`  // windows of prefetch lists that were put
	// Prefetching is how long that took: the sum of all lists that are through.
	Prefetching time.Duration `json:"prefetching_ns"`
	PID         int           `json:"pid"` // the process
}

// wire is a control connection: packets, each a message, over a unix socket of
// type SOCK_SEQPACKET.
type wire struct {
	conn *net.UnixConn
	mu   sync.Mutex // for writing
	buf  []byte
	oob  []byte
}

func newWire(conn *net.UnixConn) *wire {
	return &wire{conn: conn, buf: make([]byte, maxPacket), oob: make([]byte, unix.CmsgSpace(4))}
}

func (w *wire) send(m message) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(data) > maxPacket {
		return fmt.Errorf("a message of %d bytes", len(data))
	}
	var oob []byte
	if m.process != nil {
		m.process.mu.Lock()
		defer m.process.mu.Unlock()
		if m.process.fd >= 0 {
			oob = unix.UnixRights(m.process.fd)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// One that does not listen must not hold up the other.
	if err := w.conn.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return err
	}
	_, _, err = w.conn.WriteMsgUnix(data, oob, nil)
	return err
}

// isOver tells whether the other side is gone, which need not have been read yet.
func (w *wire) isOver() bool {
	over, err := socketFD(w.conn, func(fd int) (bool, error) {
		events := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(events, 0)
		return events[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0, err
	})
	return over || errors.Is(err, net.ErrClosed)
}

// receive returns the next message; io.EOF when the other side is gone.
func (w *wire) receive() (message, error) {
	n, oobn, flags, _, err := w.conn.ReadMsgUnix(w.buf, w.oob)
	if err != nil || n == 0 {
		return message{}, errors.Join(err, io.EOF)
	}
	fds, err := descriptors(w.oob[:oobn])
	if err == nil && flags&unix.MSG_TRUNC != 0 {
		err = errors.New("a message is too long")
	}
	var m message
	if err == nil {
		err = json.Unmarshal(w.buf[:n], &m)
	}
	if err != nil {
		closeAll(fds)
		return message{}, fmt.Errorf("reading from the control connection: %w", err)
	}
	if len(fds) == 1 && m.Op == eventConnected {
		m.process = &process{pid: m.PID, uid: m.UID, fd: fds[0]}
		return m, nil
	}
	closeAll(fds)
	return m, nil
}

// descriptors returns those that came with a message.
func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading the descriptors of a message: %w", err)
	}
	var fds []int
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&m)
		fds = append(fds, got...)
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("reading the descriptors of a message: %w", err)
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// readable tells whether a descriptor has something to read, or to accept.
func readable(fd int) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0, err
}

// socketFD calls f with the descriptor of a socket.
func socketFD[T any](conn syscall.Conn, f func(fd int) (T, error)) (result T, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return result, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { result, inner = f(int(fd)) })
	return result, errors.Join(err, inner)
}
