package block

import "iter"

// batchSize is how much of a layer is read and written back at once, in bytes:
// larger writes are cheaper, and a few of these fit a processor's cache.
const batchSize = 1 << 20

// batch is a few neighbouring frames of one layer, with all that an image has
// of them.
type batch struct {
	layer  int
	first  int     // frame that the pieces count from
	pieces []piece // ascending, in the layer and in the image
}

// piece is a stretch of the image that lies in one batch.
type piece struct {
	offset       int64 // in the image
	skip, length int   // in the uncompressed bytes from the batch's first frame on
}

// size is how many bytes of the image the batch has.
func (b batch) size() int64 {
	var n int64
	for _, p := range b.pieces {
		n += int64(p.length)
	}
	return n
}

// span is how many uncompressed bytes lie from the batch's first frame to the end
// of its last, a full one.
func (b batch) span(frameSize int64) int {
	last := b.pieces[len(b.pieces)-1]
	return int(frameCount(int64(last.skip+last.length), frameSize) * frameSize)
}

// frames yields the indexes of the frames that the pieces touch, each once.
func (b batch) frames(frameSize int64) iter.Seq[int] {
	return func(yield func(int) bool) {
		next := b.first
		for _, p := range b.pieces {
			from := b.first + p.skip/int(frameSize)
			to := b.first + (p.skip+p.length-1)/int(frameSize)
			for next = max(next, from); next <= to; next++ {
				if !yield(next) {
					return
				}
			}
		}
	}
}

// batches yields every frame that a valid header uses, once, layer by layer and
// in the order in which they are stored.
func (h *Header) batches() iter.Seq[batch] {
	frames := max(1, int(batchSize/h.FrameSize))
	span := int64(frames) * h.FrameSize
	return func(yield func(batch) bool) {
		for layer, runs := range h.runsByLayer() {
			b := batch{layer: layer}
			for _, r := range runs {
				for r.Length > 0 {
					if first := int(r.LayerOffset/span) * frames; first != b.first {
						if len(b.pieces) > 0 && !yield(b) {
							return
						}
						b = batch{layer: layer, first: first}
					}
					skip := r.LayerOffset % span
					n := min(r.Length, span-skip)
					b.pieces = append(b.pieces, piece{offset: r.Offset, skip: int(skip), length: int(n)})
					r.Offset, r.LayerOffset, r.Length = r.Offset+n, r.LayerOffset+n, r.Length-n
				}
			}
			if len(b.pieces) > 0 && !yield(b) {
				return
			}
		}
	}
}

// runsByLayer sorts the runs into their layers. In each they keep the image's
// order, which is the layer's too.
func (h *Header) runsByLayer() [][]Run {
	use := h.Usage()
	sorted := make([][]Run, len(h.Layers))
	for i, l := range use.Layers {
		sorted[i] = make([]Run, 0, l.Runs)
	}
	for _, r := range h.Runs {
		if !r.IsHole() {
			sorted[r.Layer] = append(sorted[r.Layer], r)
		}
	}
	return sorted
}
