package expose

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// nbdConn is one client's connection. One goroutine reads requests, up to nbdWorkers work on them, and whichever of these has a reply ready
// while nobody is sending sends its own and all that gather meanwhile.
type nbdConn struct {
	server *NBDServer
	conn   net.Conn
	in     *bufio.Reader
	size   int64 // of the disk, as told to the client

	settled bool // without a handshake

	// What the handshake has settled.
	fixed      bool // the client understands option replies
	noZeroes   bool // the client does without padding
	structured bool // replies come in chunks
	allocation bool // the client has chosen base:allocation

	work    chan *nbdRequest
	workers sync.WaitGroup
	budget  *semaphore.Weighted // bytes that requests under way may hold
	spare   sync.Pool           // of *nbdRequest
	out     nbdSender
}

// nbdRequest is a request, and then its reply.
type nbdRequest struct {
	flags, command uint16
	cookie         uint64
	offset, length int64
	payload        *buffer // what is to be written, or what a reply carries after its head; nil for none
	cost           int64   // of the connection's budget

	head     [nbdChunkSize + 8]byte // of the reply
	headSize int
}

func (c *nbdConn) serve(ctx context.Context) error {
	if !c.settled {
		wanted, err := c.handshake()
		if err != nil {
			return fmt.Errorf("in the handshake: %w", err)
		}
		if !wanted {
			return nil
		}
	}
	c.work = make(chan *nbdRequest)
	c.budget = semaphore.NewWeighted(nbdBudget)
	c.spare.New = func() any { return new(nbdRequest) }
	c.out.conn = c

	err := c.readRequests(ctx)
	// The client may have hung up without a word, or wait for the replies to its last requests; but not for ever.
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.server.drain))
	close(c.work)
	c.workers.Wait()
	if sendErr := c.out.failure(); sendErr != nil {
		// That is why reading failed, if it did: the sender closes the connection.
		return fmt.Errorf("sending a reply: %w", sendErr)
	}
	return err
}

// readRequests takes in requests until the client has no more.
func (c *nbdConn) readRequests(ctx context.Context) error {
	started := 0
	for {
		r, err := c.readRequest(ctx)
		if err != nil || r == nil {
			return err
		}
		if r.headSize != 0 { // answered already
			c.out.send(r)
			continue
		}
		select {
		case c.work <- r:
			continue
		default:
		}
		if started < nbdWorkers {
			started++
			c.workers.Go(func() { c.serveRequests(ctx) })
		}
		c.work <- r
	}
}

// readRequest returns the next request with all that belongs to it, or nil when the client is done. A request that is refused comes with
// its reply.
func (c *nbdConn) readRequest(ctx context.Context) (*nbdRequest, error) {
	head, err := c.in.Peek(nbdRequestSize)
	if err != nil {
		if errors.Is(err, io.EOF) {
			if len(head) == 0 {
				return nil, nil
			}
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading a request: %w", err)
	}
	if magic := binary.BigEndian.Uint32(head); magic != nbdRequestMagic {
		return nil, fmt.Errorf("a request begins with %#x", magic)
	}
	r := c.spare.Get().(*nbdRequest)
	*r = nbdRequest{
		flags:   binary.BigEndian.Uint16(head[4:]),
		command: binary.BigEndian.Uint16(head[6:]),
		cookie:  binary.BigEndian.Uint64(head[8:]),
		offset:  int64(binary.BigEndian.Uint64(head[16:])), // negative past 8 EiB; check refuses it
		length:  int64(binary.BigEndian.Uint32(head[24:])),
	}
	_, _ = c.in.Discard(nbdRequestSize)
	if r.command == nbdCmdDisc {
		return nil, nil
	}
	if r.command == nbdCmdWrite && r.length > nbdMaxPayload {
		return nil, fmt.Errorf("the client wants to write %d bytes at once, more than %d", r.length, nbdMaxPayload)
	}
	refusal := c.check(r)
	r.cost = nbdRequestCost
	if refusal == 0 && (r.command == nbdCmdRead || r.command == nbdCmdWrite) {
		r.cost += r.length
	}
	if err := c.budget.Acquire(ctx, r.cost); err != nil {
		return nil, err
	}
	if r.command == nbdCmdWrite {
		if err := c.readPayload(r, refusal == 0); err != nil {
			return nil, fmt.Errorf("reading the %d bytes of a write: %w", r.length, err)
		}
	}
	if refusal != 0 {
		c.fail(r, refusal)
	}
	return r, nil
}

// readPayload takes in what is to be written, or only reads past it.
func (c *nbdConn) readPayload(r *nbdRequest, keep bool) error {
	var err error
	if keep {
		r.payload = c.server.buffers.get(int(r.length))
		_, err = io.ReadFull(c.in, r.payload.bytes)
	} else {
		_, err = c.in.Discard(int(r.length))
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// check returns the error with which a request is to be refused, or 0.
func (c *nbdConn) check(r *nbdRequest) uint32 {
	allowed := uint16(nbdFlagFUA)
	changes, beyond := false, uint32(nbdEINVAL)
	switch r.command {
	case nbdCmdRead:
		if c.structured {
			allowed |= nbdFlagDF
		}
		if r.length > nbdMaxPayload {
			return nbdEINVAL
		}
	case nbdCmdWrite:
		changes, beyond = true, nbdENOSPC
	case nbdCmdWriteZeroes:
		allowed |= nbdFlagNoHole | nbdFlagFastZero
		changes, beyond = true, nbdENOSPC
	case nbdCmdTrim:
		changes = true
	case nbdCmdBlockStatus:
		allowed |= nbdFlagReqOne
		if !c.allocation || r.length == 0 {
			return nbdEINVAL
		}
	case nbdCmdFlush:
		if r.flags&^allowed != 0 {
			return nbdEINVAL
		}
		return 0 // offset and length mean nothing
	default:
		return nbdEINVAL
	}
	switch {
	case r.flags&^allowed != 0:
		return nbdEINVAL
	case changes && c.server.options.ReadOnly:
		return nbdEPERM
	case r.offset < 0 || r.offset > c.size || r.length > c.size-r.offset:
		return beyond
	}
	return 0
}

// release gives back what a request holds.
func (c *nbdConn) release(r *nbdRequest) {
	c.server.buffers.put(r.payload)
	c.budget.Release(r.cost)
	r.payload = nil
	c.spare.Put(r)
}
