package expose

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/sporevm/spore/internal/block"
)

// Overlay is a Disk that keeps all changes to itself: copy-on-write over a Base, in a sparse file without a name.
//
// Its content is worth nothing without the process that made it, so Flush has nothing to do: what must outlive the process is published as
// a snapshot's layer (see Dirty).
type Overlay struct {
	dir   string
	size  int64
	file  *os.File
	state blockMap
	// locks order changes to the same block: whole blocks are written under a shared lock, since any two such writes may land in either
	// order; what must read before it writes, and what changes several things at once, holds the lock alone. Reads need none.
	locks [lockCount]sync.RWMutex

	// mu is held shared by every operation, and alone by those that change what follows.
	mu     sync.RWMutex
	base   Base
	below  Mapper // the base's, or nil
	frozen bool
	closed bool
}

const (
	lockCount  = 64
	lockRegion = 4 << 20 // bytes under one lock; neighbouring regions have different locks
)

// NewOverlay returns an Overlay of the base's size in which nothing is written yet. Its file is made in dir, which should be on a disk: it grows
// with what is written, up to the base's size. The base must stay open and unchanged until the Overlay is closed or rebased.
func NewOverlay(base Base, dir string) (*Overlay, error) {
	size := base.Size()
	if size < 0 {
		return nil, fmt.Errorf("making an overlay: the base's size is %d", size)
	}
	file, err := unnamedFile(dir)
	if err != nil {
		return nil, fmt.Errorf("making an overlay: %w", err)
	}
	if err := file.Truncate(size); err != nil {
		file.Close()
		return nil, fmt.Errorf("making an overlay of %d bytes in %s: %w", size, dir, err)
	}
	return &Overlay{dir: dir, size: size, file: file, base: base, below: mapperOf(base), state: newBlockMap(blocksIn(size))}, nil
}

// blocksIn is the number of blocks that size bytes take; the last may be short.
func blocksIn(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// Size is the disk's size in bytes.
func (o *Overlay) Size() int64 { return o.size }

// ReadAt reads like any io.ReaderAt. Errors of the base come through wrapped.
func (o *Overlay) ReadAt(p []byte, offset int64) (int, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return 0, os.ErrClosed
	}
	if offset < 0 {
		return 0, fmt.Errorf("reading at the negative offset %d", offset)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if offset >= o.size {
		return 0, io.EOF
	}
	var short error
	if left := o.size - offset; int64(len(p)) > left {
		p, short = p[:left], io.EOF
	}
	for done := 0; done < len(p); {
		at := offset + int64(done)
		k, blocks := o.state.run(at/BlockSize, blocksIn(offset+int64(len(p))))
		n := min((at/BlockSize+blocks)*BlockSize-at, int64(len(p)-done))
		if err := o.readKind(k, p[done:done+int(n)], at); err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), short
}

// readKind fills p with bytes that are all in blocks of kind k.
func (o *Overlay) readKind(k kind, p []byte, offset int64) error {
	switch k {
	case zeroed:
		clear(p)
		return nil
	case written:
		if _, err := o.file.ReadAt(p, offset); err != nil {
			return fmt.Errorf("reading the overlay: %w", err)
		}
		return nil
	}
	n, err := o.base.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading below the overlay: %w", err)
}

// Extent tells holes from data; see Mapper. Blocks of the base are data unless the base knows better, as Mappers and *block.Readers do.
func (o *Overlay) Extent(offset, limit int64) (int64, bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	end := min(offset+limit, o.size)
	length, hole := o.extent(offset, end)
	for offset+length < end {
		n, same := o.extent(offset+length, end)
		if same != hole {
			break
		}
		length += n
	}
	return length, hole
}

// extent is Extent without joining neighbours.
func (o *Overlay) extent(offset, end int64) (int64, bool) {
	k, blocks := o.state.run(offset/BlockSize, blocksIn(end))
	length := min((offset/BlockSize+blocks)*BlockSize, end) - offset
	if k == clean && o.below != nil {
		return o.below.Extent(offset, length)
	}
	return length, k == zeroed
}

// Flush has nothing to do: no failure that a flush could guard against leaves an unnamed file behind.
func (o *Overlay) Flush(context.Context) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return os.ErrClosed
	}
	return nil
}

// Dirty returns the blocks (of BlockSize bytes) written, zeroed or trimmed since the Overlay was made; not those that were trimmed, or zeroed into a
// hole, where the base is known to have a hole anyway. Blocks written meanwhile may be missing: freeze it first if that matters.
func (o *Overlay) Dirty() *block.Set {
	dirty := &block.Set{}
	for first, blocks := int64(0), blocksIn(o.size); first < blocks; {
		k, n := o.state.run(first, blocks)
		if k != clean {
			dirty.Add(first, n)
		}
		first += n
	}
	return dirty
}

// Freeze waits for writes under way, makes o read-only for good (later writes fail with ErrFrozen) and returns an Overlay that stands on it:
// a machine goes on with the new one while the old is published. o must stay open until the new one is closed or rebased. If the new
// one can't be made, o stays writable.
func (o *Overlay) Freeze() (*Overlay, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, os.ErrClosed
	}
	next, err := NewOverlay(o, o.dir)
	if err != nil {
		return nil, err
	}
	o.frozen = true
	return next, nil
}

// Rebase puts another base of the same size and content below o: typically the snapshot that was published from the frozen Overlay that o stands
// on, which can be closed then and its space be freed. It waits for operations under way.
func (o *Overlay) Rebase(base Base) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if base.Size() != o.size {
		return fmt.Errorf("putting a base of %d bytes below an overlay of %d", base.Size(), o.size)
	}
	o.base, o.below = base, mapperOf(base)
	return nil
}

// Close waits for operations under way and gives the file's space back. What is below stays open.
func (o *Overlay) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	return o.file.Close()
}
