package expose_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
)

// nbdClient is the other side of the protocol, written from the specification and not from the server, with just what the tests need: it is a
// Disk, so that the contract suite can look at a served disk through it. Requests may be made concurrently.
type nbdClient struct {
	conn       net.Conn
	in         *bufio.Reader
	size       int64
	flags      uint16
	structured bool
	done       chan struct{} // closed when the receiver has ended

	mu      sync.Mutex
	cookie  uint64
	waiting map[uint64]*nbdCall
	err     error
}

type nbdCall struct {
	into    []byte // of a read
	offset  uint64
	extents []uint32 // of a block status: length, flags
	err     error
	done    chan struct{}
}

// dialNBD makes the handshake over conn: with chunks and block status if structured.
func dialNBD(conn net.Conn, name string, structured bool) (*nbdClient, error) {
	c := &nbdClient{conn: conn, in: bufio.NewReader(conn), waiting: map[uint64]*nbdCall{}, done: make(chan struct{})}
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c.in, hello); err != nil {
		return nil, err
	}
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" || hello[17]&3 != 3 {
		return nil, fmt.Errorf("greeting %q", hello)
	}
	if _, err := conn.Write([]byte{0, 0, 0, 3}); err != nil {
		return nil, err
	}
	if structured {
		if _, err := c.option(8, nil); err != nil {
			return nil, err
		}
		c.structured = true
		query := append(lengthAnd(name), 0, 0, 0, 1)
		query = append(query, lengthAnd("base:allocation")...)
		replies, err := c.option(10, query)
		if err != nil {
			return nil, err
		}
		if len(replies) != 1 || string(replies[0].data[4:]) != "base:allocation" {
			return nil, fmt.Errorf("no base:allocation: %v", replies)
		}
	}
	replies, err := c.option(7, append(lengthAnd(name), 0, 1, 0, 3))
	if err != nil {
		return nil, err
	}
	for _, r := range replies {
		if r.kind == 3 && binary.BigEndian.Uint16(r.data) == 0 {
			c.size = int64(binary.BigEndian.Uint64(r.data[2:]))
			c.flags = binary.BigEndian.Uint16(r.data[10:])
		}
	}
	if c.flags&1 == 0 {
		return nil, fmt.Errorf("no description of the export in %v", replies)
	}
	go c.receive()
	return c, nil
}

func lengthAnd(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

type optionReply struct {
	kind uint32
	data []byte
}

// option sends an option and returns the replies before the final acknowledgement.
func (c *nbdClient) option(number uint32, data []byte) ([]optionReply, error) {
	if _, err := c.conn.Write(appendOption(nil, number, data)); err != nil {
		return nil, err
	}
	var replies []optionReply
	for {
		var head [20]byte
		if _, err := io.ReadFull(c.in, head[:]); err != nil {
			return nil, err
		}
		if binary.BigEndian.Uint64(head[:]) != 0x3e889045565a9 || binary.BigEndian.Uint32(head[8:]) != number {
			return nil, fmt.Errorf("reply %x to option %d", head, number)
		}
		r := optionReply{binary.BigEndian.Uint32(head[12:]), make([]byte, binary.BigEndian.Uint32(head[16:]))}
		if _, err := io.ReadFull(c.in, r.data); err != nil {
			return nil, err
		}
		switch {
		case r.kind == 1:
			return replies, nil
		case r.kind >= 1<<31:
			return replies, optionError(r.kind)
		}
		replies = append(replies, r)
	}
}

type optionError uint32

func (e optionError) Error() string {
	return fmt.Sprintf("option refused with 2^31+%d", uint32(e)-1<<31)
}

func appendOption(p []byte, number uint32, data []byte) []byte {
	p = append(p, "IHAVEOPT"...)
	p = binary.BigEndian.AppendUint32(p, number)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

func appendRequest(p []byte, flags, command uint16, cookie, offset uint64, length uint32) []byte {
	p = binary.BigEndian.AppendUint32(p, 0x25609513)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, command)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, offset)
	return binary.BigEndian.AppendUint32(p, length)
}

// receive takes in replies until the connection ends, then fails the calls that have none.
func (c *nbdClient) receive() {
	defer close(c.done)
	var err error
	for err == nil {
		err = c.receiveOne()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for _, call := range c.waiting {
		call.err = err
		close(call.done)
	}
	c.waiting = nil
}

func (c *nbdClient) receiveOne() error {
	var head [20]byte
	if _, err := io.ReadFull(c.in, head[:16]); err != nil {
		return err
	}
	cookie := binary.BigEndian.Uint64(head[8:])
	c.mu.Lock()
	call := c.waiting[cookie]
	c.mu.Unlock()
	if call == nil {
		return fmt.Errorf("a reply to %d, which nobody asked", cookie)
	}
	last := true
	switch magic := binary.BigEndian.Uint32(head[:]); {
	case magic == 0x67446698:
		if number := binary.BigEndian.Uint32(head[4:]); number != 0 {
			call.err = syscall.Errno(number)
			break
		}
		if c.structured && call.into != nil {
			return fmt.Errorf("a simple reply to a read")
		}
		if _, err := io.ReadFull(c.in, call.into); err != nil {
			return err
		}
	case magic == 0x668e33ef && c.structured:
		if _, err := io.ReadFull(c.in, head[16:]); err != nil {
			return err
		}
		last = head[5]&1 != 0
		if err := c.receiveChunk(call, binary.BigEndian.Uint16(head[6:]), int(binary.BigEndian.Uint32(head[16:]))); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a reply begins with %#x", magic)
	}
	if last {
		c.mu.Lock()
		delete(c.waiting, cookie)
		c.mu.Unlock()
		close(call.done)
	}
	return nil
}

func (c *nbdClient) receiveChunk(call *nbdCall, kind uint16, length int) error {
	if kind == 1 { // data: straight to where it belongs
		var at [8]byte
		if _, err := io.ReadFull(c.in, at[:]); err != nil {
			return err
		}
		from := binary.BigEndian.Uint64(at[:]) - call.offset
		if from > uint64(len(call.into)) || uint64(length-8) > uint64(len(call.into))-from {
			return fmt.Errorf("a chunk of %d bytes at %d in a read of %d", length-8, from, len(call.into))
		}
		_, err := io.ReadFull(c.in, call.into[from:from+uint64(length-8)])
		return err
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(c.in, data); err != nil {
		return err
	}
	switch kind {
	case 0:
	case 5:
		for p := data[4:]; len(p) > 0; p = p[4:] {
			call.extents = append(call.extents, binary.BigEndian.Uint32(p))
		}
	case 1<<15 + 1:
		call.err = syscall.Errno(binary.BigEndian.Uint32(data))
	default:
		return fmt.Errorf("a chunk of kind %d", kind)
	}
	return nil
}

// do makes one request and waits for its reply.
func (c *nbdClient) do(flags, command uint16, offset int64, length int, payload []byte, call *nbdCall) error {
	call.offset, call.done = uint64(offset), make(chan struct{})
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.cookie++
	c.waiting[c.cookie] = call
	head := appendRequest(nil, flags, command, c.cookie, uint64(offset), uint32(length))
	pieces := net.Buffers{head, payload}
	_, err := pieces.WriteTo(c.conn)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	<-call.done
	return call.err
}

func (c *nbdClient) Size() int64 { return c.size }

func (c *nbdClient) ReadAt(p []byte, offset int64) (int, error) {
	var short error
	if offset >= 0 && offset < c.size && int64(len(p)) > c.size-offset {
		p, short = p[:c.size-offset], io.EOF
	} else if len(p) > 0 && offset >= c.size {
		return 0, io.EOF
	}
	if err := c.do(0, 0, offset, len(p), nil, &nbdCall{into: p}); err != nil {
		return 0, err
	}
	return len(p), short
}

func (c *nbdClient) WriteAt(p []byte, offset int64) (int, error) {
	if err := c.do(0, 1, offset, len(p), p, &nbdCall{}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *nbdClient) Flush(context.Context) error { return c.do(0, 3, 0, 0, nil, &nbdCall{}) }

func (c *nbdClient) Trim(offset, length int64) error {
	return c.do(0, 4, offset, int(length), nil, &nbdCall{})
}

func (c *nbdClient) Zero(offset, length int64, allowHole bool) error {
	var flags uint16 = 1 << 1
	if allowHole {
		flags = 1 << 4 // and fast, too
	}
	return c.do(flags, 6, offset, int(length), nil, &nbdCall{})
}

func (c *nbdClient) Extent(offset, limit int64) (int64, bool) {
	call := &nbdCall{}
	if err := c.do(1<<3, 7, offset, int(limit), nil, call); err != nil || len(call.extents) != 2 {
		panic(fmt.Sprintf("block status: %v, %v", call.extents, err))
	}
	return int64(call.extents[0]), call.extents[1] == 3
}

// Close says goodbye and waits for the server to hang up.
func (c *nbdClient) Close() error {
	c.mu.Lock()
	_, err := c.conn.Write(appendRequest(nil, 0, 2, 0, 0, 0))
	c.mu.Unlock()
	<-c.done
	if closeErr := c.conn.Close(); err == nil {
		err = closeErr
	}
	return err
}

// mustDial is dialNBD that can't fail.
func mustDial(t testing.TB, conn net.Conn, name string, structured bool) *nbdClient {
	t.Helper()
	c, err := dialNBD(conn, name, structured)
	if err != nil {
		t.Fatalf("handshake: %v", err)
	}
	return c
}
