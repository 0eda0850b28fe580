package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// CopyTo writes the image's data to f and leaves out its holes: f must read as
// zeros before. If f has a method Truncate(int64) error, as an *os.File does, it
// is given the image's size first. Every frame that the image uses is read and
// verified once, several at a time.
//
// progress, if not nil, is told how many bytes of the image were copied since the
// last call; the sum is what Header().Usage().Data() says. Calls do not overlap.
// After an error f holds verified bytes at their places, but not all.
func (r *Reader) CopyTo(ctx context.Context, f io.WriterAt, progress func(n int64)) error {
	if r.err != nil {
		return r.err
	}
	if t, ok := f.(interface{ Truncate(size int64) error }); ok {
		if err := t.Truncate(r.h.Size); err != nil {
			return fmt.Errorf("copying %s: setting the size of the copy: %w", r.layers.artifact, err)
		}
	}
	report := serial(progress)
	return r.eachBatch(ctx, func(b batch, data []byte) error {
		for _, p := range b.pieces {
			if _, err := f.WriteAt(data[p.skip:p.skip+p.length], p.offset); err != nil {
				return fmt.Errorf("copying %s: %w", r.layers.artifact, err)
			}
		}
		report(b.size())
		return nil
	}, func(err error) error { return err })
}

// farReaders is how many batches of a source that is far away are read at once.
const farReaders = 8

// maxCorrupt is how many corrupt frames Verify lists before it gives up.
const maxCorrupt = 16

// Verify reads every frame that the image uses and returns all that are corrupt,
// up to a limit, as [CorruptError] values joined. progress is as in CopyTo,
// corrupt frames counted too.
func (r *Reader) Verify(ctx context.Context, progress func(n int64)) error {
	if r.err != nil {
		return r.err
	}
	report := serial(progress)
	var mu sync.Mutex
	var found []error
	err := r.eachBatch(ctx, func(b batch, _ []byte) error {
		report(b.size())
		return nil
	}, func(err error) error {
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if len(found) == maxCorrupt {
			return fmt.Errorf("verifying %s: stopped after %d corrupt frames", r.layers.artifact, maxCorrupt)
		}
		found = append(found, err)
		return nil
	})
	return errors.Join(append(found, err)...)
}

// serial returns progress with its calls one after another; it may be nil.
func serial(progress func(n int64)) func(n int64) {
	if progress == nil {
		return func(int64) {}
	}
	var mu sync.Mutex
	return func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		progress(n)
	}
}

// eachBatch reads all frames that the image uses and calls use for each batch,
// with the bytes from its first frame on, which are use's until it returns. A
// frame that can not be read goes to failed, which decides whether to go on.
// Both are called from several goroutines.
func (r *Reader) eachBatch(ctx context.Context, use func(b batch, data []byte) error, failed func(error) error) error {
	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan batch)
	group.Go(func() error {
		defer close(batches)
		for b := range r.h.batches() {
			if err := ctx.Err(); err != nil {
				return err
			}
			select {
			case batches <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	workers := max(2, runtime.GOMAXPROCS(0))
	if r.layers.cache != nil {
		workers = max(workers, farReaders) // they wait more than they work
	}
	for range workers {
		group.Go(func() error {
			var data, scratch []byte
			for b := range batches {
				if n := b.span(r.h.FrameSize); len(data) < n {
					data = make([]byte, n)
				}
				if err := r.readBatch(ctx, b, data, &scratch, failed); err != nil {
					return err
				}
				if err := use(b, data); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// readBatch reads and verifies the frames of b into their places in data.
func (r *Reader) readBatch(ctx context.Context, b batch, data []byte, scratch *[]byte, failed func(error) error) error {
	layer, frameSize := r.h.Layers[b.layer], r.h.FrameSize
	right, err := r.readNeighbours(ctx, b, data)
	if err != nil {
		return err
	}
	for frame := range b.frames(frameSize) {
		if right[frame] {
			continue
		}
		at := (frame - b.first) * int(frameSize)
		dst := data[at : at+layer.frameLength(frame, frameSize)]
		err := r.layers.read(ctx, frameKey{layer: b.layer, frame: frame}, dst, scratch)
		if err == nil {
			continue
		}
		if err := failed(err); err != nil {
			return err
		}
	}
	return nil
}

// readNeighbours reads what it can of a batch from afar with few reads, and returns
// the frames that are there and verified.
func (r *Reader) readNeighbours(ctx context.Context, b batch, data []byte) (map[int]bool, error) {
	if r.layers.cache == nil {
		return nil, nil
	}
	right := map[int]bool{}
	layer, frameSize := r.h.Layers[b.layer], int(r.h.FrameSize)
	read := func(first, end int) error { // plain frames, one after the other
		if first == end {
			return nil
		}
		at := (first - b.first) * frameSize
		size := (end-first-1)*frameSize + layer.frameLength(end-1, r.h.FrameSize)
		good, err := r.layers.loadPlain(ctx, b.layer, first, data[at:at+size])
		for i, ok := range good {
			right[first+i] = ok
		}
		return err
	}
	first, end := 0, 0
	for frame := range b.frames(r.h.FrameSize) {
		if layer.Frames[frame].Codec != Plain {
			continue
		}
		if frame != end {
			if err := read(first, end); err != nil {
				return nil, err
			}
			first = frame
		}
		end = frame + 1
	}
	return right, read(first, end)
}
