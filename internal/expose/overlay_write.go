package expose

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// WriteAt writes like any io.WriterAt. Blocks written only in part are completed from what was there before.
func (o *Overlay) WriteAt(p []byte, offset int64) (int, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if err := o.writable(offset, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := offset + int64(done)
		n, whole := o.piece(at, int64(len(p)-done))
		write := o.writePart
		if whole {
			write = o.writeWhole
		}
		if err := write(p[done:done+int(n)], at); err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), nil
}

// Zero makes the range read as zeros and marks its blocks as changed; see Disk.
func (o *Overlay) Zero(offset, length int64, allowHole bool) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if err := o.writable(offset, length); err != nil {
		return err
	}
	return o.zero(offset, length, allowHole)
}

// Trim zeroes the whole blocks in the range, so that a snapshot need not keep what the guest has thrown away.
func (o *Overlay) Trim(offset, length int64) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if err := o.writable(offset, length); err != nil {
		return err
	}
	end := offset + length
	offset = blocksIn(offset) * BlockSize
	if end < o.size {
		end -= end % BlockSize
	}
	if offset >= end {
		return nil
	}
	return o.zero(offset, end-offset, true)
}

func (o *Overlay) zero(offset, length int64, allowHole bool) error {
	for end := offset + length; offset < end; {
		n, whole := o.piece(offset, end-offset)
		var err error
		if whole {
			err = o.zeroWhole(offset, n, allowHole)
		} else {
			err = o.zeroPart(offset, n, allowHole)
		}
		if err != nil {
			return err
		}
		offset += n
	}
	return nil
}

// writable checks that a change to the range can be made.
func (o *Overlay) writable(offset, length int64) error {
	switch {
	case o.closed:
		return os.ErrClosed
	case o.frozen:
		return ErrFrozen
	case offset < 0 || length < 0:
		return fmt.Errorf("writing %d bytes at %d: %w", length, offset, unix.EINVAL)
	case offset > o.size || length > o.size-offset:
		return fmt.Errorf("writing %d bytes at %d, past the end of a disk of %d: %w", length, offset, o.size, unix.ENOSPC)
	}
	return nil
}

// piece returns how much of a change at offset can be made in one go, under one lock, and whether that is a number of whole blocks
// or part of a single one, as the end of a disk that ends inside a block always is.
func (o *Overlay) piece(offset, length int64) (n int64, whole bool) {
	n = min(length, lockRegion-offset%lockRegion)
	if in := offset % BlockSize; in != 0 {
		return min(n, BlockSize-in), false
	}
	if n < BlockSize {
		return n, false
	}
	return n - n%BlockSize, true
}

func (o *Overlay) lock(offset int64) *sync.RWMutex {
	return &o.locks[offset/lockRegion%lockCount]
}

// writeWhole marks the blocks only when all of their content is in the file; until then readers find the old content.
func (o *Overlay) writeWhole(p []byte, offset int64) error {
	l := o.lock(offset)
	l.RLock()
	defer l.RUnlock()
	if err := o.writeFile(p, offset); err != nil {
		return err
	}
	o.state.markWritten(offset/BlockSize, int64(len(p))/BlockSize)
	return nil
}

// writePart changes part of one block.
func (o *Overlay) writePart(p []byte, offset int64) error {
	l := o.lock(offset)
	l.Lock()
	defer l.Unlock()
	number := offset / BlockSize
	k := o.state.kindOf(number)
	if k == written {
		return o.writeFile(p, offset)
	}
	start := number * BlockSize
	var room [BlockSize]byte
	whole := room[:min(BlockSize, o.size-start)]
	if err := o.readKind(k, whole, start); err != nil {
		return err
	}
	copy(whole[offset-start:], p)
	if err := o.writeFile(whole, start); err != nil {
		return err
	}
	o.state.markWritten(number, 1)
	return nil
}

// zeroPart clears part of one block.
func (o *Overlay) zeroPart(offset, length int64, allowHole bool) error {
	if allowHole && o.state.kindOf(offset/BlockSize) == zeroed {
		return nil
	}
	var zeros [BlockSize]byte
	return o.writePart(zeros[:length], offset)
}

func (o *Overlay) zeroWhole(offset, length int64, allowHole bool) error {
	l := o.lock(offset)
	l.Lock()
	defer l.Unlock()
	first, blocks := offset/BlockSize, length/BlockSize
	if !allowHole {
		if err := reserve(o.file, offset, length); err != nil {
			return fmt.Errorf("reserving space in the overlay: %w", err)
		}
		o.state.markZeroed(first, blocks)
		return nil
	}
	stale := o.state.anyWritten(first, blocks)
	o.markHoles(first, first+blocks)
	if stale {
		// The map hides the old bytes already: a file system that can't punch holes costs space, not correctness.
		_ = punch(o.file, offset, length)
	}
	return nil
}

// markHoles makes blocks up to end read as zeros. Where the base has a hole they do so already: a guest that discards all that it has free (fstrim)
// must not leave every block of its disk for a snapshot to look at.
func (o *Overlay) markHoles(first, end int64) {
	for first < end {
		k, n := o.state.run(first, end)
		if k == clean {
			var hole bool
			if n, hole = o.baseRun(first, first+n); hole {
				first += n
				continue
			}
		}
		if k != zeroed {
			o.state.markZeroed(first, n)
		}
		first += n
	}
}

// baseRun tells whether the base is known to have a hole in block first, and for how many blocks before end that holds; at least one.
func (o *Overlay) baseRun(first, end int64) (n int64, hole bool) {
	if o.below == nil {
		return end - first, false
	}
	length, hole := o.below.Extent(first*BlockSize, (end-first)*BlockSize)
	switch {
	case !hole:
		return blocksIn(length), false
	case length < BlockSize: // a hole in part of the block
		return 1, false
	}
	return length / BlockSize, true
}

func (o *Overlay) writeFile(p []byte, offset int64) error {
	if _, err := o.file.WriteAt(p, offset); err != nil {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	return nil
}
