package pager

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

// Image is where the pages come from. A *block.Reader is one.
type Image interface {
	// Header is the image's table of contents.
	Header() *block.Header
	// ReadFrame fills p, which is as long as the frame, with verified bytes.
	ReadFrame(ctx context.Context, layer, frame int, p []byte) error
}

// How an image that fails is asked again.
const (
	readAttempts = 4
	readPause    = 20 * time.Millisecond // before the second attempt; each later one is four times as long
	// loadLimit is how many frames are read at once.
	loadLimit = 32
)

// source is an image with its frames kept.
type source struct {
	image       Image
	h           *block.Header
	frames      *frames
	loads       chan struct{} // holds one entry for each read under way
	timeout     time.Duration // for a page, with all attempts
	reads       atomic.Int64  // frames that were read
	prefetched  atomic.Int64  // windows
	prefetching atomic.Int64  // nanoseconds, of lists that are through
	zeros       []byte        // a huge page of them, which take no memory
}

// openSource keeps up to cache bytes of an image's frames. Reading one of them
// may take as long as timeout in all.
func openSource(image Image, cache int64, timeout time.Duration) (*source, error) {
	h := image.Header()
	if err := h.Validate(); err != nil {
		return nil, fmt.Errorf("serving an image: %w", err)
	}
	kept, err := newFrames(cache, int(h.FrameSize))
	if err != nil {
		return nil, err
	}
	zeros, err := unix.Mmap(-1, 0, hugePage, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("making room for zeros: %w", err)
	}
	return &source{image: image, h: h, frames: kept, loads: make(chan struct{}, loadLimit), timeout: timeout, zeros: zeros}, nil
}

// piece is a stretch of a window that lies in one frame or in a hole.
type piece struct {
	Range
	layer, frame int // layer is block.Hole for zeros
	skip         int // bytes of the frame before the piece
}

// pieces appends what a range of the image consists of.
func (s *source) pieces(into []piece, r Range) []piece {
	for run := range s.h.RunsIn(r.Offset, r.Length) {
		if run.IsHole() {
			into = append(into, piece{Range: Range{run.Offset, run.Length}, layer: block.Hole})
			continue
		}
		for run.Length > 0 {
			skip := run.LayerOffset % s.h.FrameSize
			n := min(run.Length, s.h.FrameSize-skip)
			into = append(into, piece{
				Range: Range{run.Offset, n}, layer: run.Layer, frame: int(run.LayerOffset / s.h.FrameSize), skip: int(skip),
			})
			run.Offset, run.LayerOffset, run.Length = run.Offset+n, run.LayerOffset+n, run.Length-n
		}
	}
	return into
}

func (p piece) isHole() bool { return p.layer == block.Hole }

// frame returns the digest and the length of the frame that a piece lies in.
func (s *source) frame(p piece) (block.Digest, int) {
	l := s.h.Layers[p.layer]
	return l.Frames[p.frame].Digest, int(min(s.h.FrameSize, l.Size-int64(p.frame)*s.h.FrameSize))
}

// cached returns the bytes of a piece that is no hole if they are there now. The
// slot is to be released after use.
func (s *source) cached(p piece) (*slot, []byte) {
	digest, size := s.frame(p)
	held, data := s.frames.get(digest, size)
	if held == nil {
		return nil, nil
	}
	return held, data[p.skip:][:p.Length]
}

// load is cached for a piece that may have to be read first.
func (s *source) load(ctx context.Context, p piece) (*slot, []byte, error) {
	digest, size := s.frame(p)
	late := fmt.Errorf("reading %d bytes at %d has not ended in %v", p.Length, p.Offset, s.timeout)
	waiting, cancel := context.WithTimeoutCause(ctx, s.timeout, late)
	defer cancel()
	held, data, err := s.frames.load(waiting, digest, size, func(into []byte) error {
		// Others may wait for this frame, so it is not one machine's to give up.
		reading, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), s.timeout, late)
		defer cancel()
		return s.read(reading, p, into)
	})
	if err != nil {
		return nil, nil, err
	}
	return held, data[p.skip:][:p.Length], nil
}

// read reads a piece's frame, more than once if it has to. What is damaged stays
// so: the image has asked twice itself where that can help.
func (s *source) read(ctx context.Context, p piece, into []byte) error {
	select {
	case s.loads <- struct{}{}:
		defer func() { <-s.loads }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	pause := readPause
	for attempt := 1; ; attempt++ {
		err := s.image.ReadFrame(ctx, p.layer, p.frame, into)
		var damage *block.CorruptError
		switch {
		case err == nil:
			s.reads.Add(1)
			return nil
		case errors.As(err, &damage):
			return err
		case attempt == readAttempts:
			return fmt.Errorf("after %d attempts: %w", attempt, err)
		}
		select {
		case <-time.After(pause):
			pause *= 4
		case <-ctx.Done():
			return fmt.Errorf("after %d attempts: %w", attempt, err)
		}
	}
}
