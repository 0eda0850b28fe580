package block_test

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block"
)

// The numbers around which the bitmap's words and pages change.
var edges = []int64{0, 1, 63, 64, 65, 32767, 32768, 32769, 65536, 98304, 200_000}

func drawBlock(t *rapid.T, label string) int64 {
	return max(0, rapid.SampledFrom(edges).Draw(t, label+" edge")+rapid.Int64Range(-3, 200).Draw(t, label))
}

// Any sequence of changes leaves the set that a map would be.
func TestSetIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s block.Set
		model := map[int64]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				first, n := drawBlock(t, "first"), rapid.Int64Range(-1, 300).Draw(t, "n")
				s.Add(first, n)
				for i := range max(n, 0) {
					model[first+i] = true
				}
			},
			"remove": func(t *rapid.T) {
				first, n := drawBlock(t, "first"), rapid.Int64Range(-1, 300).Draw(t, "n")
				s.Remove(first, n)
				for i := range max(n, 0) {
					delete(model, first+i)
				}
			},
			"union": func(t *rapid.T) {
				var other block.Set
				first, n := drawBlock(t, "first"), rapid.Int64Range(0, 300).Draw(t, "n")
				other.Add(first, n)
				s.Union(&other)
				for i := range n {
					model[first+i] = true
				}
			},
			"clone": func(*rapid.T) {
				c := s.Clone()
				s.Add(0, 1000)
				s = *c
			},
			"": func(t *rapid.T) {
				if s.Len() != int64(len(model)) {
					t.Fatalf("%d blocks, want %d", s.Len(), len(model))
				}
				at := drawBlock(t, "at")
				if s.Contains(at) != model[at] {
					t.Fatalf("contains %d: %v", at, s.Contains(at))
				}
				limit := rapid.Int64Range(1, 500).Draw(t, "limit")
				want := int64(1)
				for want < limit && model[at+want] == model[at] {
					want++
				}
				if n, in := s.Span(at, limit); n != want || in != model[at] {
					t.Fatalf("span of %d at %d is %d, %v; want %d, %v", limit, at, n, in, want, model[at])
				}
				requireRanges(t, &s, model)
			},
		})
	})
}

// requireRanges checks that Ranges yields the model, in order, as ranges that
// could not be longer.
func requireRanges(t *rapid.T, s *block.Set, model map[int64]bool) {
	var count int64
	last := int64(-1)
	for first, n := range s.Ranges() {
		if n <= 0 || first <= last {
			t.Fatalf("a range of %d at %d after %d", n, first, last)
		}
		if model[first-1] || model[first+n] {
			t.Fatalf("the range of %d at %d could be longer", n, first)
		}
		for i := range n {
			if !model[first+i] {
				t.Fatalf("block %d is not in the set", first+i)
			}
		}
		count, last = count+n, first+n
	}
	if count != int64(len(model)) {
		t.Fatalf("ranges hold %d blocks, want %d", count, len(model))
	}
}

func TestSetAtTheEnds(t *testing.T) {
	var s block.Set
	for _, r := range [][2]int64{{-5, 3}, {-5, 0}, {0, 0}, {0, -1}, {math.MinInt64, -1}, {math.MaxInt64, math.MaxInt64}, {math.MinInt64, math.MaxInt64}} {
		s.Add(r[0], r[1])
	}
	if s.Len() != 0 {
		t.Errorf("%d blocks that can not be are in the set", s.Len())
	}
	s.Add(-5, 7)
	last := int64(block.MaxSize/block.MinBlockSize - 1)
	s.Add(last, math.MaxInt64)
	var got [][2]int64
	for first, n := range s.Ranges() {
		got = append(got, [2]int64{first, n})
	}
	if want := [][2]int64{{0, 2}, {last, 1}}; !slices.Equal(got, want) {
		t.Errorf("ranges are %v, want %v", got, want)
	}
	s.Remove(math.MinInt64, math.MaxInt64)
	s.Remove(-1, 2)
	s.Remove(last, math.MaxInt64)
	if s.Len() != 1 || !s.Contains(1) {
		t.Errorf("%d blocks are left, want just block 1", s.Len())
	}
	s = block.Set{}
	if n, in := s.Span(7, 10); s.Len() != 0 || n != 10 || in {
		t.Errorf("the empty set has %d blocks and a span of %d, %v", s.Len(), n, in)
	}
}

// Leaving the loop early is allowed.
func TestSetRangesStop(t *testing.T) {
	var s block.Set
	s.Add(1, 1)
	s.Add(3, 1)
	for first := range s.Ranges() {
		if first != 1 {
			t.Errorf("block %d after the loop ended", first)
		}
		break
	}
}
