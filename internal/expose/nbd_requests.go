package expose

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// serveRequests is one worker.
func (c *nbdConn) serveRequests(ctx context.Context) {
	for r := range c.work {
		if f := c.perform(ctx, r); f != nil {
			c.server.report(f)
			c.fail(r, errorNumber(f.Err))
		}
		c.out.send(r)
	}
}

// perform does what a request asks and makes its reply, unless the disk fails.
func (c *nbdConn) perform(ctx context.Context, r *nbdRequest) *Fault {
	disk := c.server.disk
	var op string
	var err error
	switch r.command {
	case nbdCmdRead:
		r.payload = c.server.buffers.get(int(r.length))
		if n, err := disk.ReadAt(r.payload.bytes, r.offset); n < len(r.payload.bytes) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return &Fault{Op: "read", Offset: r.offset, Length: r.length, Err: err}
		}
		c.succeedRead(r)
		return nil
	case nbdCmdBlockStatus:
		c.blockStatus(r)
		return nil
	case nbdCmdFlush:
		if err := disk.Flush(ctx); err != nil {
			return &Fault{Op: "flush", Err: err}
		}
		c.succeed(r)
		return nil
	case nbdCmdWrite:
		op = "write"
		_, err = disk.WriteAt(r.payload.bytes, r.offset)
	case nbdCmdWriteZeroes:
		op = "zero"
		err = disk.Zero(r.offset, r.length, r.flags&nbdFlagNoHole == 0)
	case nbdCmdTrim:
		op = "trim"
		err = disk.Trim(r.offset, r.length)
	}
	if err != nil {
		return &Fault{Op: op, Offset: r.offset, Length: r.length, Err: err}
	}
	if r.flags&nbdFlagFUA != 0 {
		if err := disk.Flush(ctx); err != nil {
			return &Fault{Op: "flush", Err: err}
		}
	}
	c.succeed(r)
	return nil
}

// blockStatus tells holes from data, from the start of the range on and as far as one reply goes.
func (c *nbdConn) blockStatus(r *nbdRequest) {
	limit := nbdMaxExtents
	if r.flags&nbdFlagReqOne != 0 {
		limit = 1
	}
	r.payload = c.server.buffers.get(4 + 8*limit)
	reply := binary.BigEndian.AppendUint32(r.payload.bytes[:0], nbdAllocationID)
	for end := r.offset + r.length; r.offset < end && limit > 0; limit-- {
		length, hole := c.server.disk.Extent(r.offset, end-r.offset)
		state := uint32(0)
		if hole {
			state = nbdStateHole | nbdStateZero
		}
		reply = binary.BigEndian.AppendUint32(reply, uint32(length))
		reply = binary.BigEndian.AppendUint32(reply, state)
		r.offset += length
	}
	r.payload.bytes = reply
	c.chunk(r, nbdChunkBlockStatus, len(reply))
}

// errorNumber is what a client gets to see of a failure.
func errorNumber(err error) uint32 {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return nbdENOSPC
	case errors.Is(err, ErrFrozen), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return nbdEPERM
	case errors.Is(err, unix.ENOMEM):
		return nbdENOMEM
	case errors.Is(err, unix.EINVAL):
		return nbdEINVAL
	case errors.Is(err, fs.ErrClosed), errors.Is(err, context.Canceled):
		return nbdESHUTDOWN
	}
	return nbdEIO
}
