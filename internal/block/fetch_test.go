package block

import (
	"bytes"
	"errors"
	"iter"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// stretches yields pairs of offset and length.
func stretches(pairs ...[2]int64) iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		for _, p := range pairs {
			if !yield(p[0], p[1]) {
				return
			}
		}
	}
}

// TestFetcher reads an image by plans of random stretches: each frame comes once, in no more reads than it takes, and all that is wanted is right.
func TestFetcher(t *testing.T) {
	for _, codec := range []Codec{Plain, Zstd} {
		h, source, plain := far(t, codec)
		rapid.Check(t, func(t *rapid.T) {
			var pairs [][2]int64
			for range rapid.IntRange(0, 20).Draw(t, "stretches") {
				block := rapid.Int64Range(0, h.Size/DefaultBlockSize-1).Draw(t, "block")
				pairs = append(pairs, [2]int64{block * DefaultBlockSize, rapid.Int64Range(1, 40).Draw(t, "blocks") * DefaultBlockSize})
			}
			source.n = 0
			f := NewReader("memfile", h, source, WithCache(&mapCache{frames: map[Digest][]byte{}})).Fetcher()
			plan := f.Plan(stretches(pairs...))
			got, seen := make([]byte, len(plain)), map[int]bool{}
			for _, frames := range plan {
				for frame := frames.First; frame < frames.End; frame++ {
					if seen[frame] {
						t.Fatalf("frame %d is planned twice", frame)
					}
					seen[frame] = true
				}
				if err := f.Fetch(t.Context(), frames, func(offset int64, p []byte) { copy(got[offset:], p) }); err != nil {
					t.Fatal(err)
				}
			}
			if codec == Plain && source.n != len(plan) {
				t.Errorf("%d reads for %d parts", source.n, len(plan))
			}
			for i, p := range pairs {
				end := min(p[0]+p[1], h.Size)
				if !bytes.Equal(got[p[0]:end], plain[p[0]:end]) {
					t.Fatalf("stretch %d has other bytes", i)
				}
				for at := p[0]; at < end; at += DefaultBlockSize {
					frames, ok := f.At(at)
					if ok == IsZero(plain[at:at+DefaultBlockSize]) || ok && !seen[frames.First] {
						t.Fatalf("the block at %d is in frame %v, %v", at, frames, ok)
					}
				}
			}
			if len(pairs) > 0 && len(plan) > 0 { // what is wanted first is in the first part
				for _, p := range pairs {
					for at := p[0]; at < min(p[0]+p[1], h.Size); at += DefaultBlockSize {
						if first, ok := f.At(at); ok {
							if first.First < plan[0].First || first.First >= plan[0].End {
								t.Fatalf("frame %d is wanted first, the plan begins with %v", first.First, plan[0])
							}
							return
						}
					}
				}
			}
		})
	}
}

// TestFetcherJoins plans neighbours that are wanted far apart from each other.
func TestFetcherJoins(t *testing.T) {
	h, source, _ := far(t, Plain)
	f := NewReader("memfile", h, source).Fetcher()
	in := func(frame int) [2]int64 { // a byte of it
		for at := int64(0); ; at += DefaultBlockSize {
			if frames, ok := f.At(at); ok && frames.First == frame {
				return [2]int64{at, 1}
			}
		}
	}
	got := f.Plan(stretches(in(20), in(3), in(21)))
	if want := []Frames{{0, 20, 22}, {0, 3, 4}}; !slices.Equal(got, want) {
		t.Errorf("planned %v, not %v", got, want)
	}
	if all := f.Plan(stretches([2]int64{0, h.Size})); len(all) != (len(h.Layers[0].Frames)+7)/8 {
		t.Errorf("all of it is %v", all)
	}
	if none := f.Plan(stretches([2]int64{h.Size, 10}, [2]int64{-5, 3})); len(none) > 1 {
		t.Errorf("what is outside is %v", none)
	}
	if _, ok := f.At(h.Size); ok {
		t.Error("there is a frame behind the end")
	}
	if _, ok := f.At(-1); ok {
		t.Error("there is a frame before the start")
	}
}

// TestFetcherCorrupt damages one of the frames that are fetched together: none is used.
func TestFetcherCorrupt(t *testing.T) {
	h, source, _ := far(t, Plain)
	source.data = slices.Clone(source.data)
	source.data[5*h.FrameSize+77] ^= 4
	f := NewReader("memfile", h, source, WithCache(&mapCache{frames: map[Digest][]byte{}})).Fetcher()
	var damage *CorruptError
	err := f.Fetch(t.Context(), Frames{First: 3, End: 7}, func(int64, []byte) { t.Error("it was used") })
	if !errors.As(err, &damage) || damage.Frame != 5 {
		t.Errorf("fetched: %v", err)
	}
	if err := f.Fetch(t.Context(), Frames{First: 6, End: 7}, func(int64, []byte) {}); err != nil {
		t.Error(err)
	}
}
