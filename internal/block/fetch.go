package block

import (
	"context"
	"iter"
	"slices"
	"sort"
)

// Frames are neighbouring frames of one layer, from First to the one before End.
type Frames struct{ Layer, First, End int }

// Fetcher reads an image in whole frames, for those who decide themselves what is
// to be there next. It serves many goroutines at once.
type Fetcher struct {
	r    *Reader
	runs [][]Run // of each layer
}

// planSize is how many uncompressed bytes a plan reads together at most: enough
// for a request from afar to be worth its way, and little enough not to be late.
const planSize = 512 << 10

// Fetcher returns a Fetcher of the image.
func (r *Reader) Fetcher() *Fetcher {
	f := &Fetcher{r: r}
	if r.err == nil {
		f.runs = r.h.runsByLayer()
	}
	return f
}

// At returns the frame that holds the byte at offset, and whether there is one:
// holes have none.
func (f *Fetcher) At(offset int64) (Frames, bool) {
	if f.r.err != nil || offset < 0 {
		return Frames{}, false
	}
	for run := range f.r.h.RunsIn(offset, 1) {
		if !run.IsHole() {
			frame := int(run.LayerOffset / f.r.h.FrameSize)
			return Frames{run.Layer, frame, frame + 1}, true
		}
	}
	return Frames{}, false
}

// Plan returns the frames that hold the given stretches of the image, each once.
// Stretches are offsets and lengths in bytes in the order in which they are wanted;
// what comes first has what is wanted first. Neighbours are joined, wherever in the
// order they are.
func (f *Fetcher) Plan(stretches iter.Seq2[int64, int64]) []Frames {
	if f.r.err != nil {
		return nil
	}
	order := map[frameKey]int{}
	var keys []frameKey
	for offset, length := range stretches {
		for run := range f.r.h.RunsIn(max(offset, 0), length) {
			if run.IsHole() {
				continue
			}
			last := int((run.LayerOffset + run.Length - 1) / f.r.h.FrameSize)
			for frame := int(run.LayerOffset / f.r.h.FrameSize); frame <= last; frame++ {
				key := frameKey{run.Layer, frame}
				if _, known := order[key]; !known {
					order[key] = len(keys)
					keys = append(keys, key)
				}
			}
		}
	}
	slices.SortFunc(keys, func(a, b frameKey) int {
		if a.layer != b.layer {
			return a.layer - b.layer
		}
		return a.frame - b.frame
	})
	most := int(max(1, planSize/f.r.h.FrameSize))
	var plan []Frames
	wanted := map[Frames]int{}
	for i := 0; i < len(keys); {
		joined, first := Frames{keys[i].layer, keys[i].frame, keys[i].frame}, len(keys)
		for i < len(keys) && keys[i] == (frameKey{joined.Layer, joined.End}) && joined.End-joined.First < most {
			first = min(first, order[keys[i]])
			joined.End++
			i++
		}
		plan = append(plan, joined)
		wanted[joined] = first
	}
	slices.SortFunc(plan, func(a, b Frames) int { return wanted[a] - wanted[b] })
	return plan
}

// Fetch reads frames that At or Plan returned, in one read if they are stored
// plain and the source is far away, and verifies each. use is given all that the
// image has of them, by offset; the bytes are its own. It is not called unless all
// are right.
func (f *Fetcher) Fetch(ctx context.Context, frames Frames, use func(offset int64, p []byte)) error {
	if f.r.err != nil {
		return f.r.err
	}
	frameSize := f.r.h.FrameSize
	b := batch{layer: frames.Layer, first: frames.First}
	from, to := int64(frames.First)*frameSize, int64(frames.End)*frameSize
	runs := f.runs[frames.Layer]
	next := sort.Search(len(runs), func(i int) bool { return runs[i].LayerOffset+runs[i].Length > from })
	for ; next < len(runs) && runs[next].LayerOffset < to; next++ {
		run := runs[next]
		start, end := max(run.LayerOffset, from), min(run.LayerOffset+run.Length, to)
		b.pieces = append(b.pieces, piece{offset: run.Offset + start - run.LayerOffset, skip: int(start - from), length: int(end - start)})
	}
	if len(b.pieces) == 0 {
		return nil
	}
	data, scratch := make([]byte, b.span(frameSize)), []byte(nil)
	if err := f.r.readBatch(ctx, b, data, &scratch, func(err error) error { return err }); err != nil {
		return err
	}
	for _, p := range b.pieces {
		use(p.offset, data[p.skip:p.skip+p.length])
	}
	return nil
}
