package expose

import (
	"encoding/binary"
	"net"
	"sync"
)

// succeed makes the reply to a request that returns nothing. A simple one will do even where replies may be structured.
func (c *nbdConn) succeed(r *nbdRequest) {
	c.dropPayload(r)
	r.simple(0)
}

// succeedRead makes the reply that carries the request's payload.
func (c *nbdConn) succeedRead(r *nbdRequest) {
	if !c.structured {
		r.simple(0)
		return
	}
	if r.length == 0 {
		c.chunk(r, nbdChunkNone, 0)
		return
	}
	c.chunk(r, nbdChunkData, 8+int(r.length))
	binary.BigEndian.PutUint64(r.head[nbdChunkSize:], uint64(r.offset))
	r.headSize += 8
}

// fail makes the reply that says what went wrong; only a number, since the other side is not the one to be told about the host.
func (c *nbdConn) fail(r *nbdRequest, number uint32) {
	c.dropPayload(r)
	if !c.structured || r.command != nbdCmdRead && r.command != nbdCmdBlockStatus {
		r.simple(number)
		return
	}
	c.chunk(r, nbdChunkError, 6)
	binary.BigEndian.PutUint32(r.head[nbdChunkSize:], number)
	binary.BigEndian.PutUint16(r.head[nbdChunkSize+4:], 0) // length of a message
	r.headSize += 6
}

func (c *nbdConn) dropPayload(r *nbdRequest) {
	c.server.buffers.put(r.payload)
	r.payload = nil
}

func (r *nbdRequest) simple(number uint32) {
	binary.BigEndian.PutUint32(r.head[:], nbdSimpleReply)
	binary.BigEndian.PutUint32(r.head[4:], number)
	binary.BigEndian.PutUint64(r.head[8:], r.cookie)
	r.headSize = nbdSimpleSize
}

// chunk begins a structured reply of one chunk, with length bytes after its head.
func (c *nbdConn) chunk(r *nbdRequest, kind uint16, length int) {
	binary.BigEndian.PutUint32(r.head[:], nbdStructuredReply)
	binary.BigEndian.PutUint16(r.head[4:], nbdChunkDone)
	binary.BigEndian.PutUint16(r.head[6:], kind)
	binary.BigEndian.PutUint64(r.head[8:], r.cookie)
	binary.BigEndian.PutUint32(r.head[16:], uint32(length))
	r.headSize = nbdChunkSize
}

// nbdSender sends replies, each whole, several with one system call when they come thick.
type nbdSender struct {
	conn *nbdConn

	mu      sync.Mutex
	waiting []*nbdRequest
	sending bool // somebody is, and will take care of what is waiting
	err     error

	// Only for whoever is sending.
	batch  []*nbdRequest
	pieces net.Buffers
	unsent net.Buffers // what of the pieces is still to go; a field, since a local one would escape
}

// send sends a reply or leaves it to who is sending already. The request is not the caller's any more.
func (s *nbdSender) send(r *nbdRequest) {
	s.mu.Lock()
	s.waiting = append(s.waiting, r)
	if s.sending {
		s.mu.Unlock()
		return
	}
	s.sending = true
	for len(s.waiting) > 0 {
		s.batch, s.waiting = s.waiting, s.batch[:0]
		failed := s.err != nil
		s.mu.Unlock()
		var err error
		if !failed {
			err = s.write()
		}
		for i, r := range s.batch {
			s.conn.release(r)
			s.batch[i] = nil
		}
		s.mu.Lock()
		if err != nil {
			s.err = err
			s.conn.conn.Close() // so that no more requests are read
		}
	}
	s.sending = false
	s.mu.Unlock()
}

// write sends the batch.
func (s *nbdSender) write() error {
	pieces := s.pieces[:0]
	for _, r := range s.batch {
		pieces = append(pieces, r.head[:r.headSize])
		if r.payload != nil && len(r.payload.bytes) > 0 {
			pieces = append(pieces, r.payload.bytes)
		}
	}
	s.pieces, s.unsent = pieces, pieces
	_, err := s.unsent.WriteTo(s.conn.conn)
	return err
}

func (s *nbdSender) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
