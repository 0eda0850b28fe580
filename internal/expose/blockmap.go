package expose

import (
	"iter"
	"math/bits"
	"sync/atomic"
)

// kind is where the content of a block of an Overlay is to be found.
type kind uint8

const (
	clean   kind = iota // in the base
	written             // in the overlay's file
	zeroed              // nowhere: it reads as zeros, whatever the file holds there
)

// blockMap keeps the kind of every block. Readers take no lock: a block's kind is always published after its content (see markWritten and
// markZeroed), so a reader that sees a kind finds what belongs to it. Changes to one block must be ordered by the caller.
type blockMap struct {
	dirty []atomic.Uint64 // not clean
	zero  []atomic.Uint64 // zeroed; only ever set where dirty is, or is about to be
}

func newBlockMap(blocks int64) blockMap {
	words := (blocks + 63) / 64
	return blockMap{dirty: make([]atomic.Uint64, words), zero: make([]atomic.Uint64, words)}
}

// matching returns the bits of word w whose blocks are of kind k. Dirty is loaded first: a block that becomes zeroed gets its zero bit first,
// so that it is never taken for a written one on the way.
func (m *blockMap) matching(w int64, k kind) uint64 {
	d := m.dirty[w].Load()
	if k == clean {
		return ^d
	}
	z := m.zero[w].Load()
	if k == zeroed {
		return d & z
	}
	return d &^ z
}

// kindOf returns the kind of one block.
func (m *blockMap) kindOf(block int64) kind {
	w, bit := block/64, uint64(1)<<(block%64)
	switch {
	case m.dirty[w].Load()&bit == 0:
		return clean
	case m.zero[w].Load()&bit != 0:
		return zeroed
	}
	return written
}

// run returns the kind of block first and how many blocks from there on, before end, are of that kind; at least one.
func (m *blockMap) run(first, end int64) (kind, int64) {
	k := m.kindOf(first)
	next := first + 1
	for next < end {
		shift := next % 64
		same := int64(bits.TrailingZeros64(^(m.matching(next/64, k) >> shift)))
		next += same // never past the word: zeros were shifted in
		if same < 64-shift {
			break
		}
	}
	return k, min(next, end) - first
}

// markWritten publishes blocks whose content is in the file.
func (m *blockMap) markWritten(first, n int64) {
	for w, mask := range masks(first, n) {
		set(&m.dirty[w], mask)
		if m.zero[w].Load()&mask != 0 {
			m.zero[w].And(^mask)
		}
	}
}

// markZeroed publishes blocks that read as zeros.
func (m *blockMap) markZeroed(first, n int64) {
	for w, mask := range masks(first, n) {
		set(&m.zero[w], mask)
		set(&m.dirty[w], mask)
	}
}

// anyWritten tells whether the file holds content of any of the blocks.
func (m *blockMap) anyWritten(first, n int64) bool {
	for w, mask := range masks(first, n) {
		if m.matching(w, written)&mask != 0 {
			return true
		}
	}
	return false
}

// set spares the memory bus the write when the bits are there already, as they are when a guest rewrites its blocks.
func set(w *atomic.Uint64, mask uint64) {
	if w.Load()&mask != mask {
		w.Or(mask)
	}
}

// masks yields the words that hold the bits of n blocks from first on, each with a mask of those bits.
func masks(first, n int64) iter.Seq2[int64, uint64] {
	return func(yield func(int64, uint64) bool) {
		for end := first + n; first < end; {
			shift := first % 64
			count := min(64-shift, end-first)
			if !yield(first/64, ^uint64(0)>>(64-count)<<shift) {
				return
			}
			first += count
		}
	}
}
