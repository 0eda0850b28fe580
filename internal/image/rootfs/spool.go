package rootfs

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

// spoolAlign is where files start in the spool. Blocks of zeros are left out
// of it, and only whole blocks can be holes.
const spoolAlign = 4096

// minHole is the shortest run of zeros that becomes a hole of the file:
// shorter ones would cost more in extents than they save.
const minHole = 64 << 10

// Spool keeps the bytes of files while the tree that they belong to is still
// being put together. Later layers may hide any of them.
type Spool struct {
	f    *os.File
	next int64
	buf  []byte
}

// NewSpool returns a spool in f, an empty file that the caller removes and closes.
func NewSpool(f *os.File) *Spool {
	return &Spool{f: f, buf: make([]byte, 256<<10)}
}

// add stores what r yields, size bytes at most, and returns its place.
func (s *Spool) add(r io.Reader, size int64) (Content, error) {
	c := Content{Offset: s.next}
	for c.Size < size {
		n, err := io.ReadFull(r, s.buf[:min(int64(len(s.buf)), size-c.Size)])
		if werr := s.write(&c, s.buf[:n]); werr != nil {
			return c, werr
		}
		if err != nil {
			return c, err
		}
	}
	s.next = (c.Offset + c.Size + spoolAlign - 1) &^ (spoolAlign - 1)
	return c, nil
}

var zeroBlock [spoolAlign]byte

// write appends p to c, which is a whole number of blocks so far. Blocks of
// zeros are left out.
func (s *Spool) write(c *Content, p []byte) error {
	start := 0 // of the bytes to write
	flush := func(end int) error {
		if start == end {
			return nil
		}
		_, err := s.f.WriteAt(p[start:end], c.Offset+c.Size+int64(start))
		if err != nil {
			return fmt.Errorf("spooling the image: %w", err)
		}
		c.mark(c.Size+int64(start), c.Size+int64(end))
		return nil
	}
	for i := 0; i < len(p); i += spoolAlign {
		end := min(i+spoolAlign, len(p))
		if !bytes.Equal(p[i:end], zeroBlock[:end-i]) {
			continue
		}
		if err := flush(i); err != nil {
			return err
		}
		start = end
	}
	if err := flush(len(p)); err != nil {
		return err
	}
	c.Size += int64(len(p))
	return nil
}

// mark notes that the bytes from start to end are not all zero.
func (c *Content) mark(start, end int64) {
	if n := len(c.Data); n > 0 && start-c.Data[n-1].End < minHole {
		c.Data[n-1].End = end
		return
	}
	c.Data = append(c.Data, Range{start, end})
}

// Seal makes the spool readable to its very end, holes included.
func (s *Spool) Seal() error {
	if err := s.f.Truncate(s.next); err != nil {
		return fmt.Errorf("spooling the image: %w", err)
	}
	return nil
}

// File returns the file that holds the spool.
func (s *Spool) File() *os.File { return s.f }
