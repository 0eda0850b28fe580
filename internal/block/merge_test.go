package block_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block"
)

const kib = 1 << 10

// layerOf is a layer of n KiB in frames of 4 KiB, its digests made up.
func layerOf(id byte, n int64) block.Layer {
	l := block.Layer{ID: uuid.UUID{id}, Size: n * kib}
	for at := int64(0); at < l.Size; at += 4 * kib {
		f := block.Frame{Offset: at, Length: int(min(4*kib, l.Size-at))}
		f.Digest = block.Digest{id, byte(at >> 12)}
		l.Frames = append(l.Frames, f)
	}
	return l
}

// image is a header of blocks of 1 KiB and frames of 4.
func image(id byte, size int64, layers []block.Layer, runs ...block.Run) *block.Header {
	return &block.Header{ID: uuid.UUID{id}, BlockSize: kib, FrameSize: 4 * kib, Size: size * kib, Layers: layers, Runs: runs}
}

// run is in KiB.
func run(offset, length int64, layer int, layerOffset int64) block.Run {
	return block.Run{Offset: offset * kib, Length: length * kib, Layer: layer, LayerOffset: layerOffset * kib}
}

func hole(offset, length int64) block.Run { return run(offset, length, block.Hole, 0) }

func TestMerge(t *testing.T) {
	one, two := layerOf(1, 8), layerOf(2, 4)
	base := image(1, 10, []block.Layer{one}, run(0, 8, 0, 0), hole(8, 2))
	for name, c := range map[string]struct {
		diff, want *block.Header
	}{
		"nothing new": {
			image(2, 10, nil),
			image(2, 10, []block.Layer{one}, run(0, 8, 0, 0), hole(8, 2)),
		},
		"the older is split": {
			image(2, 10, []block.Layer{two}, run(3, 2, 0, 0)),
			image(2, 10, []block.Layer{one, two}, run(0, 3, 0, 0), run(3, 2, 1, 0), run(5, 3, 0, 5), hole(8, 2)),
		},
		"the newer spans two": {
			image(2, 10, []block.Layer{two}, run(6, 4, 0, 0)),
			image(2, 10, []block.Layer{one, two}, run(0, 6, 0, 0), run(6, 4, 1, 0)),
		},
		"a hole hides and joins the hole beside it": {
			image(2, 10, nil, hole(7, 1)),
			image(2, 10, []block.Layer{one}, run(0, 7, 0, 0), hole(7, 3)),
		},
		"what is hidden altogether is not named": {
			image(2, 10, []block.Layer{two}, hole(0, 8), run(8, 2, 0, 2)),
			image(2, 10, []block.Layer{two}, hole(0, 8), run(8, 2, 0, 2)),
		},
		"beside each other in the image, not in the layer": {
			image(2, 10, []block.Layer{two}, run(0, 1, 0, 0), run(1, 1, 0, 2)),
			image(2, 10, []block.Layer{one, two}, run(0, 1, 1, 0), run(1, 1, 1, 2), run(2, 6, 0, 2), hole(8, 2)),
		},
		"the image grows": {
			image(2, 14, []block.Layer{two}, run(12, 1, 0, 0)),
			image(2, 14, []block.Layer{one, two}, run(0, 8, 0, 0), hole(8, 4), run(12, 1, 1, 0), hole(13, 1)),
		},
		"a layer that both name": {
			image(2, 10, []block.Layer{two, one}, run(0, 2, 0, 0), run(4, 2, 1, 4)),
			image(2, 10, []block.Layer{one, two}, run(0, 2, 1, 0), run(2, 6, 0, 2), hole(8, 2)),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := block.Merge(base, c.diff)
			if err != nil {
				t.Fatal(err)
			}
			requireSame(t, got, c.want)
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	one := layerOf(1, 8)
	base := image(1, 10, []block.Layer{one}, run(0, 8, 0, 0), hole(8, 2))
	other := layerOf(1, 8)
	other.Frames[1].Digest[5]++
	frames := image(2, 10, nil)
	frames.FrameSize *= 2
	blocks := image(2, 10, nil)
	blocks.BlockSize /= 2
	for name, diff := range map[string]*block.Header{
		"other block size":        blocks,
		"other frame size":        frames,
		"shrunk":                  image(2, 9, nil),
		"invalid":                 image(2, 10, nil, run(0, 1, 0, 0)),
		"one id, two layers":      image(2, 10, []block.Layer{other}, run(0, 1, 0, 0)),
		"blocks of another place": image(2, 10, []block.Layer{one}, run(9, 1, 0, 0)),
	} {
		if got, err := block.Merge(base, diff); !errors.Is(err, block.ErrHeader) {
			t.Errorf("%s: header %v, error %v", name, got, err)
		}
	}
}

func TestDiffRefuses(t *testing.T) {
	whole, gap := image(1, 10, nil, hole(0, 10)), image(2, 10, nil, hole(0, 9))
	small, invalid := image(3, 9, nil, hole(0, 9)), image(4, 10, nil, hole(0, 11))
	for name, c := range map[string][2]*block.Header{
		"from a diff":    {gap, whole},
		"to a diff":      {whole, gap},
		"shrunk":         {whole, small},
		"invalid base":   {invalid, whole},
		"invalid header": {whole, invalid},
	} {
		if h, err := block.Diff(c[0], c[1]); !errors.Is(err, block.ErrHeader) {
			t.Errorf("%s: header %v, error %v", name, h, err)
		}
	}
}

// A chain can be merged in any grouping, and what Diff finds is what Merge needs.
func TestMergeAndDiffAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := memory{}
		_, chain := drawHistory(t, store)
		first, last := chain[0], chain[len(chain)-1]

		diffs := make([]*block.Header, 0, len(chain))
		for i, g := range chain[1:] {
			diffs = append(diffs, must(block.Diff(chain[i].header, g.header))(t))
		}
		left := first.header
		for _, d := range diffs {
			left = must(block.Merge(left, d))(t)
		}
		requireSame(t, left, last.header)

		var right *block.Header
		for _, d := range slices.Backward(diffs) {
			if right == nil {
				right = d
			} else {
				right = must(block.Merge(d, right))(t)
			}
		}
		if right != nil {
			requireSame(t, must(block.Merge(first.header, right))(t), last.header)
		}
		direct := must(block.Diff(first.header, last.header))(t)
		requireSame(t, must(block.Merge(first.header, direct))(t), last.header)

		if same := must(block.Diff(last.header, last.header))(t); len(same.Runs) > 0 {
			t.Fatalf("an image differs from itself: %v", same.Runs)
		}
	})
}

// Headers of a history are as small as can be: no layer is named in vain, no two
// runs could be one.
func TestHistoryIsTight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, chain := drawHistory(t, memory{})
		h := chain[len(chain)-1].header
		for _, l := range h.Usage().Layers {
			if l.Bytes == 0 || l.Runs == 0 {
				t.Fatalf("layer %s is named in vain", l.ID)
			}
		}
		for i := 1; i < len(h.Runs); i++ {
			a, b := h.Runs[i-1], h.Runs[i]
			if a.Layer == b.Layer && (a.IsHole() || a.LayerOffset+a.Length == b.LayerOffset) {
				t.Fatalf("runs %v and %v could be one", a, b)
			}
		}
		u := h.Usage()
		if u.Own+u.Inherited+u.Holes != h.Size {
			t.Fatalf("usage %+v does not add up to %d", u, h.Size)
		}
	})
}

// Whatever was written how often, squashing leaves one layer that reads alike.
func TestSquashReadsAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := memory{}
		s, chain := drawHistory(t, store)
		last := chain[len(chain)-1]
		squashed := squash(t, store, s, last)
		if n := len(squashed.header.Layers); n > 1 {
			t.Fatalf("%d layers after squashing", n)
		}
		requireReads(t, store, squashed)
		next := drawGeneration(t, store, s, squashed)
		requireReads(t, store, next)
	})
}
