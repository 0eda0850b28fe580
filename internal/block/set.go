package block

import (
	"iter"
	"math/bits"
)

// Set is a set of block numbers, such as the blocks that were written since the
// last snapshot. The zero value is empty. A Set may be read by many goroutines
// or changed by one.
//
// It is a bitmap in pages that are there only where blocks are: 4 KiB for every
// 32,768 blocks (128 MiB of an image of 4 KiB blocks) that has any.
type Set struct {
	pages []*setPage
	count int64
}

const (
	pageWords  = 512
	pageBlocks = pageWords * 64

	// maxBlocks is one more than the greatest block number that can be in a Set.
	maxBlocks = MaxSize / MinBlockSize
)

type setPage [pageWords]uint64

// Add puts n blocks from first into the set. Numbers below zero or beyond any
// image are ignored.
func (s *Set) Add(first, n int64) {
	change(first, n, maxBlocks, func(page, at int, mask uint64) {
		for page >= len(s.pages) {
			s.pages = append(s.pages, nil)
		}
		if s.pages[page] == nil {
			s.pages[page] = new(setPage)
		}
		word := &s.pages[page][at]
		s.count += int64(bits.OnesCount64(mask &^ *word))
		*word |= mask
	})
}

// Remove takes n blocks from first out of the set.
func (s *Set) Remove(first, n int64) {
	change(first, n, s.limit(), func(page, at int, mask uint64) {
		if s.pages[page] == nil {
			return
		}
		word := &s.pages[page][at]
		s.count -= int64(bits.OnesCount64(mask & *word))
		*word &^= mask
	})
}

// change calls f for every word that n blocks from first touch, as far as they
// are from 0 to limit, with the bits of that word that they are.
func change(first, n, limit int64, f func(page, word int, mask uint64)) {
	if n <= 0 || first >= limit {
		return
	}
	if first < 0 {
		n, first = n+first, 0
	}
	n = min(n, limit-first)
	for n > 0 {
		bit := first % 64
		width := min(64-bit, n)
		mask := ^uint64(0) >> (64 - width) << bit
		f(int(first/pageBlocks), int(first%pageBlocks/64), mask)
		first += width
		n -= width
	}
}

// limit is one more than the greatest block number that could be in the set.
func (s *Set) limit() int64 { return int64(len(s.pages)) * pageBlocks }

// Len is the number of blocks in the set.
func (s *Set) Len() int64 { return s.count }

// Contains reports whether block n is in the set.
func (s *Set) Contains(n int64) bool {
	if n < 0 || n >= s.limit() {
		return false
	}
	page := s.pages[n/pageBlocks]
	return page != nil && page[n%pageBlocks/64]>>(n%64)&1 == 1
}

// Span reports whether block first is in the set, and how many blocks from it
// on, at most n, are like it.
func (s *Set) Span(first, n int64) (length int64, in bool) {
	in = s.Contains(first)
	return min(s.next(first, !in)-first, n), in
}

// Ranges yields the set as ascending ranges of n blocks from first, each as long
// as can be. The set must not change meanwhile.
func (s *Set) Ranges() iter.Seq2[int64, int64] {
	return func(yield func(first, n int64) bool) {
		limit := s.limit()
		for first := s.next(0, true); first < limit; {
			end := min(s.next(first, false), limit)
			if !yield(first, end-first) {
				return
			}
			first = s.next(end, true)
		}
	}
}

// next returns the first block number from n on that is in the set, or is not
// in it. It is maxBlocks if there is none.
func (s *Set) next(n int64, in bool) int64 {
	for limit := s.limit(); n < limit; {
		page := s.pages[n/pageBlocks]
		if page == nil {
			if !in {
				return n
			}
			n += pageBlocks - n%pageBlocks
			continue
		}
		word := page[n%pageBlocks/64]
		if !in {
			word = ^word
		}
		if word >>= n % 64; word != 0 {
			return n + int64(bits.TrailingZeros64(word))
		}
		n += 64 - n%64
	}
	if !in {
		return n
	}
	return maxBlocks
}

// Union adds all blocks of other to the set.
func (s *Set) Union(other *Set) {
	for first, n := range other.Ranges() {
		s.Add(first, n)
	}
}

// Clone returns a copy that shares nothing with the set.
func (s *Set) Clone() *Set {
	c := &Set{pages: make([]*setPage, len(s.pages)), count: s.count}
	for i, page := range s.pages {
		if page != nil {
			copied := *page
			c.pages[i] = &copied
		}
	}
	return c
}
