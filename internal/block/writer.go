package block

import (
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// WriterOptions shape what a Writer writes. Zero sizes but Size mean the
// defaults.
type WriterOptions struct {
	BlockSize int64 // bytes
	FrameSize int64 // bytes; by default DefaultFrameSize or, if larger, BlockSize
	Size      int64 // bytes of the image; needed
	Codec     Codec // of frames that it makes smaller; the others are stored plain
}

// Stats says what a Writer did, in bytes of the image unless told otherwise.
type Stats struct {
	Data   int64 // packed into the layer
	Zeros  int64 // recorded as holes, because they were zero or told to be
	Stored int64 // bytes of the layer as stored
	Frames int   // frames of the layer
}

var errWriterDone = errors.New("the block writer is finished")

// Writer makes one snapshot's layer of an image. Blocks go in ascending order
// and come out packed, cut into frames, compressed if asked. Digests,
// compression and the writes themselves happen in the background, so that Write
// costs the caller little more than a copy while up to 16 MiB are on their way.
//
// A Writer is for one goroutine. Its first error sticks, and Finish reports it
// too. Every Writer must be ended, by Finish or by Abort.
type Writer struct {
	id      uuid.UUID
	options WriterOptions
	out     *pipeline
	runs    runList
	end     int64 // of what was written or zeroed, in the image
	packed  int64 // bytes of the layer
	stats   Stats
	done    bool
	err     error
}

// NewWriter returns a Writer for the layer of snapshot id. The layer's bytes go
// to w, one frame a call, from another goroutine; w is left alone once Finish or
// Abort has returned. Options that no header could have are reported by the
// first call.
func NewWriter(w io.Writer, id uuid.UUID, o WriterOptions) *Writer {
	if o.BlockSize == 0 {
		o.BlockSize = DefaultBlockSize
	}
	if o.FrameSize == 0 {
		o.FrameSize = max(DefaultFrameSize, o.BlockSize)
	}
	writer := &Writer{id: id, options: o}
	writer.err = validateSizes(o.BlockSize, o.FrameSize, o.Size)
	if writer.err == nil && o.Codec != Plain && o.Codec != Zstd {
		writer.err = fmt.Errorf("writing blocks: unknown %s", o.Codec)
	}
	if writer.err == nil {
		writer.out, writer.err = newPipeline(w, o.Codec, int(o.FrameSize))
	}
	return writer
}

// Write puts p at offset of the image. Both are multiples of the block size, and
// offset is at or after the end of what was written before; what lies between is
// left as it is in the base. Blocks that are all zero become holes. p is the
// caller's again when Write returns.
func (w *Writer) Write(offset int64, p []byte) error {
	if err := w.advance("writing", offset, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		zero := IsZero(p[:w.options.BlockSize])
		n := w.options.BlockSize
		for n < int64(len(p)) && IsZero(p[n:n+w.options.BlockSize]) == zero {
			n += w.options.BlockSize
		}
		if zero {
			w.hole(offset, n)
		} else if err := w.data(offset, p[:n]); err != nil {
			return err
		}
		offset += n
		p = p[n:]
	}
	return nil
}

// WriteChanged is Write for just those blocks of p that are not equal to the
// same blocks of old, which is as long as p: the image's bytes before. The
// others are left as they are in the base.
func (w *Writer) WriteChanged(offset int64, p, old []byte) error {
	if len(p) != len(old) {
		return w.fail(fmt.Errorf("writing blocks: %d bytes compared with %d", len(p), len(old)))
	}
	if err := w.check("writing", offset, int64(len(p))); err != nil {
		return err
	}
	size := int(w.options.BlockSize)
	same := func(at int) bool { return string(p[at:at+size]) == string(old[at:at+size]) }
	for at := 0; at < len(p); {
		start := at
		if same(at) {
			at += size
			continue
		}
		for at < len(p) && !same(at) {
			at += size
		}
		if err := w.Write(offset+int64(start), p[start:at]); err != nil {
			return err
		}
	}
	return nil
}

// Zero makes length bytes at offset read as zeros, whatever the base has there.
// The rules for Write hold.
func (w *Writer) Zero(offset, length int64) error {
	if err := w.advance("zeroing", offset, length); err != nil {
		return err
	}
	if length > 0 {
		w.hole(offset, length)
	}
	return nil
}

// check holds the rules on what comes next.
func (w *Writer) check(action string, offset, length int64) error {
	if w.done {
		return errWriterDone
	}
	if w.err != nil {
		return w.err
	}
	o := w.options
	switch {
	case offset < w.end:
		return w.fail(fmt.Errorf("%s blocks: offset %d is before %d, where the last call ended", action, offset, w.end))
	case length < 0 || offset > o.Size || length > o.Size-offset:
		return w.fail(fmt.Errorf("%s blocks: %d bytes at %d are not inside the image of %d", action, length, offset, o.Size))
	case offset%o.BlockSize != 0 || length%o.BlockSize != 0:
		return w.fail(fmt.Errorf("%s blocks: %d bytes at %d are not aligned to blocks of %d", action, length, offset, o.BlockSize))
	}
	return nil
}

func (w *Writer) advance(action string, offset, length int64) error {
	if err := w.check(action, offset, length); err != nil {
		return err
	}
	w.end = offset + length
	return nil
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}

func (w *Writer) hole(offset, length int64) {
	w.stats.Zeros += length
	w.runs.add(Run{Offset: offset, Length: length, Layer: Hole})
}

func (w *Writer) data(offset int64, p []byte) error {
	length := int64(len(p))
	w.runs.add(Run{Offset: offset, Length: length, Layer: 0, LayerOffset: w.packed})
	w.packed += length
	w.stats.Data += length
	if err := w.out.write(p); err != nil {
		return w.fail(fmt.Errorf("writing blocks: %w", err))
	}
	return nil
}

// Finish waits until the layer is written and returns the header of the image:
// what was written laid over base. Without a base all that was not written is a
// hole. The header names every layer that the image needs; base's own header is
// not needed any more. base must have the same block and frame size and be no
// larger.
func (w *Writer) Finish(base *Header) (*Header, Stats, error) {
	if w.done {
		return nil, Stats{}, errWriterDone
	}
	w.done = true
	if w.out != nil {
		if err := w.out.close(); err != nil {
			w.fail(fmt.Errorf("writing blocks: %w", err))
		}
	}
	if w.err != nil {
		return nil, Stats{}, w.err
	}
	h := w.diff()
	w.stats.Stored, w.stats.Frames = w.out.stored, len(w.out.frames)
	if base == nil {
		h.Runs = fillGaps(h.Runs, h.Size)
		if err := h.Validate(); err != nil {
			return nil, Stats{}, fmt.Errorf("writing blocks: %w", err)
		}
		return h, w.stats, nil
	}
	h.Parent, h.Generation = base.ID, base.Generation+1
	merged, err := Merge(base, h)
	if err != nil {
		return nil, Stats{}, err
	}
	return merged, w.stats, nil
}

// diff is the header of what was written and nothing else.
func (w *Writer) diff() *Header {
	o := w.options
	h := &Header{ID: w.id, BlockSize: o.BlockSize, FrameSize: o.FrameSize, Size: o.Size, Runs: w.runs}
	if w.packed > 0 {
		h.Layers = []Layer{{ID: w.id, Size: w.packed, Frames: w.out.frames}}
	}
	return h
}

// Abort ends the Writer without a result: it stops the work in the background
// and waits for it. After Finish it does nothing, so it can be deferred.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	if w.out != nil {
		w.out.abandon()
	}
}
