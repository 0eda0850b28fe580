package block

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sort"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// copySize is about how many stored bytes are read at once.
const copySize = 1 << 20

// CopyLayer writes the layer that the snapshot id stored to w, as it is stored and
// in order, and verifies every frame before it is written. It begins with the frame
// that is stored at from, 0 for the whole layer. A header that does not name the
// layer has nothing to copy. progress, if not nil, is told how many stored bytes
// were copied since the last call; calls do not overlap.
func (r *Reader) CopyLayer(ctx context.Context, id uuid.UUID, from int64, w io.Writer, progress func(n int64)) error {
	if r.err != nil {
		return r.err
	}
	index := -1
	for i, l := range r.h.Layers {
		if l.ID == id {
			index = i
		}
	}
	if index < 0 {
		return nil
	}
	frames := r.h.Layers[index].Frames
	start := sort.Search(len(frames), func(i int) bool { return frames[i].Offset >= from })
	if start < len(frames) && frames[start].Offset != from {
		return fmt.Errorf("copying %s: no frame is stored at %d", r.layers.artifact, from)
	}
	workers := max(2, runtime.GOMAXPROCS(0))
	free := make(chan *stretch, 2*workers)
	for range cap(free) {
		free <- &stretch{done: make(chan struct{}, 1)}
	}
	work, order := make(chan *stretch, cap(free)), make(chan *stretch, cap(free))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(work)
		defer close(order)
		for first := start; first < len(frames); {
			select {
			case s := <-free:
				s.first, s.end = first, stretchEnd(frames, first)
				first = s.end
				order <- s // neither blocks: each holds all there are
				work <- s
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range workers {
		group.Go(func() error {
			for s := range work {
				if err := r.layers.readStored(ctx, index, s); err != nil {
					return err
				}
				s.done <- struct{}{}
			}
			return nil
		})
	}
	group.Go(func() error {
		for s := range order {
			select {
			case <-s.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			n, err := w.Write(s.stored)
			if err == nil && n < len(s.stored) {
				err = io.ErrShortWrite
			}
			if err != nil {
				return fmt.Errorf("copying %s: %w", r.layers.artifact, err)
			}
			if progress != nil {
				progress(int64(n))
			}
			free <- s
		}
		return nil
	})
	return group.Wait()
}

// stretch is some neighbouring frames of a layer, as stored.
type stretch struct {
	first, end int // frames
	stored     []byte
	raw        []byte // scratch
	done       chan struct{}
}

// stretchEnd returns where the frames from first on reach copySize.
func stretchEnd(frames []Frame, first int) int {
	end, size := first, 0
	for end < len(frames) && (end == first || size+frames[end].Length <= copySize) {
		size += frames[end].Length
		end++
	}
	return end
}

// readStored reads the stored bytes of s and verifies each of its frames.
func (s *layerSet) readStored(ctx context.Context, index int, part *stretch) error {
	l := s.h.Layers[index]
	frames := l.Frames[part.first:part.end]
	last := frames[len(frames)-1]
	size := int(last.Offset-frames[0].Offset) + last.Length
	if cap(part.stored) < size {
		part.stored = make([]byte, size)
	}
	part.stored = part.stored[:size]
	whole := Frame{Offset: frames[0].Offset, Length: size}
	if err := s.fetch(ctx, frameKey{layer: index, frame: part.first}, whole, part.stored); err != nil {
		return err
	}
	if part.raw == nil {
		part.raw = make([]byte, s.h.FrameSize)
	}
	for i, f := range frames {
		at := int(f.Offset - whole.Offset)
		raw := part.stored[at : at+f.Length]
		key := frameKey{layer: index, frame: part.first + i}
		if f.Codec != Plain {
			dst := part.raw[:l.frameLength(part.first+i, s.h.FrameSize)]
			if err := s.expand(dst, raw); err != nil {
				return s.corrupt(key, f, err)
			}
			raw = dst
		}
		if err := f.verify(raw); err != nil {
			return s.corrupt(key, f, err)
		}
	}
	return nil
}
