package block

import (
	"context"
	"fmt"
	"io"
)

// cacheLimit bounds the verified frames that a Reader keeps, in bytes.
const cacheLimit = 16 << 20

// Reader reads an image through its header. Every byte that it hands out was
// verified, in the very memory it was copied from; what can not be verified is a
// [CorruptError] and never data. It serves many goroutines at once.
type Reader struct {
	h      *Header
	layers *layerSet
	cache  *frameCache
	err    error // why nothing can be read
}

// FrameCache keeps frames of a source that is far away. Nothing that goes wrong
// with it is an error, and what it gives is verified. It serves many goroutines.
type FrameCache interface {
	// Get fills p with the frame of a digest, and tells whether it had it.
	Get(d Digest, p []byte) bool
	// Put keeps a frame, in the place of what Get gave before.
	Put(d Digest, p []byte)
}

// ReaderOption changes how a Reader works.
type ReaderOption func(*Reader)

// WithCache says that the source is far away: frames come from the cache if it has
// them, neighbouring ones in one read, and a wrong one is asked for again once.
func WithCache(c FrameCache) ReaderOption { return func(r *Reader) { r.layers.cache = c } }

// NewReader returns a Reader of the image that the whole header h describes.
// Errors call it name, such as "memfile of snapshot <id>". Layers are opened
// when they are first needed.
func NewReader(name string, h *Header, source Source, options ...ReaderOption) *Reader {
	r := &Reader{h: h, layers: newLayerSet(name, h, source), cache: newFrameCache(cacheLimit)}
	for _, o := range options {
		o(r)
	}
	if err := h.Validate(); err != nil {
		r.err = fmt.Errorf("reading %s: %w", name, err)
	}
	return r
}

// Header returns the header that the Reader reads by.
func (r *Reader) Header() *Header { return r.h }

// Size is the size of the image in bytes.
func (r *Reader) Size() int64 { return r.h.Size }

// ReadAt is io.ReaderAt over the image.
func (r *Reader) ReadAt(p []byte, offset int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, offset)
}

// ReadAtContext is ReadAt under a context, which serves to open layers and is
// looked at before each frame. After an error p holds nothing that was not
// verified: the n bytes returned, and zeros or what it held before.
func (r *Reader) ReadAtContext(ctx context.Context, p []byte, offset int64) (int, error) {
	switch {
	case r.err != nil:
		return 0, r.err
	case offset < 0:
		return 0, fmt.Errorf("reading %s: negative offset %d", r.layers.artifact, offset)
	case offset >= r.h.Size:
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > r.h.Size-offset {
		p, end = p[:r.h.Size-offset], io.EOF
	}
	done := 0
	for run := range r.h.RunsIn(offset, int64(len(p))) {
		part := p[done : done+int(run.Length)]
		n, err := r.readRun(ctx, run, part)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, end
}

// readRun fills p with the bytes of run, which is as long.
func (r *Reader) readRun(ctx context.Context, run Run, p []byte) (int, error) {
	if run.IsHole() {
		clear(p)
		return len(p), nil
	}
	layer := r.h.Layers[run.Layer]
	done := 0
	for done < len(p) {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		at := run.LayerOffset + int64(done)
		key := frameKey{layer: run.Layer, frame: int(at / r.h.FrameSize)}
		n, err := r.readFrame(ctx, key, layer.frameLength(key.frame, r.h.FrameSize), int(at%r.h.FrameSize), p[done:])
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// readFrame copies what p takes of a frame of size bytes, from skip on.
func (r *Reader) readFrame(ctx context.Context, key frameKey, size, skip int, p []byte) (int, error) {
	if skip == 0 && len(p) >= size {
		// Whole frames are verified where the caller wants them. Cached they would
		// push out frames that are read piece by piece.
		if data := r.cache.peek(key); data != nil {
			return copy(p, data), nil
		}
		var scratch []byte
		if err := r.layers.read(ctx, key, p[:size:size], &scratch); err != nil {
			return 0, err
		}
		return size, nil
	}
	data, err := r.cache.get(key, size, func() ([]byte, error) {
		data, scratch := make([]byte, size), []byte(nil)
		// Others may wait for this frame, so it is not one caller's to give up.
		return data, r.layers.read(context.WithoutCancel(ctx), key, data, &scratch)
	})
	if err != nil {
		return 0, err
	}
	return copy(p, data[skip:]), nil
}

// ReadFrame fills p, which is as long as the frame, with the verified bytes of one
// frame of a layer, an index into the header's Layers. It is for those who keep
// frames themselves, by their digests: this Reader keeps none of it. After an
// error p holds nothing of the frame.
func (r *Reader) ReadFrame(ctx context.Context, layer, frame int, p []byte) error {
	switch {
	case r.err != nil:
		return r.err
	case layer < 0 || layer >= len(r.h.Layers) || frame < 0 || frame >= len(r.h.Layers[layer].Frames):
		return fmt.Errorf("reading %s: it has no frame %d of layer %d", r.layers.artifact, frame, layer)
	case len(p) != r.h.Layers[layer].frameLength(frame, r.h.FrameSize):
		return fmt.Errorf("reading %s: frame %d of layer %d has not %d bytes", r.layers.artifact, frame, layer, len(p))
	case ctx.Err() != nil:
		return ctx.Err()
	}
	var scratch []byte
	return r.layers.read(ctx, frameKey{layer, frame}, p, &scratch)
}

// Close closes the layers that were opened. Later reads fail.
func (r *Reader) Close() error {
	if err := r.layers.close(); err != nil {
		return fmt.Errorf("closing %s: %w", r.layers.artifact, err)
	}
	return nil
}
