package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
)

// Source opens the stored bytes of layers.
type Source interface {
	// Layer returns the bytes that snapshot id stored for the image at hand. What
	// it returns is closed by the reader that asked if it is an io.Closer. An error, of
	// this or of reading, with a method Damaged() bool that says true is taken for
	// damage of the bytes.
	Layer(ctx context.Context, id uuid.UUID) (io.ReaderAt, error)
}

// layerSet reads and verifies frames of a header's layers, each opened when it is
// first needed.
type layerSet struct {
	artifact string
	h        *Header
	source   Source
	open     []openLayer // one for each of the header's layers
	cache    FrameCache  // nil: the source is near
	unzstd   func() (*zstd.Decoder, error)
}

type openLayer struct {
	mu     sync.Mutex
	bytes  io.ReaderAt // nil until it is opened, and once closed
	closed bool
}

func newLayerSet(artifact string, h *Header, source Source) *layerSet {
	return &layerSet{
		artifact: artifact,
		h:        h,
		source:   source,
		open:     make([]openLayer, len(h.Layers)),
		unzstd:   sync.OnceValues(func() (*zstd.Decoder, error) { return newUnzstd(int(h.FrameSize)) }),
	}
}

// layer opens layer i, once. A failure is not kept: the next call tries again.
func (s *layerSet) layer(ctx context.Context, i int) (io.ReaderAt, error) {
	l := &s.open[i]
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("reading %s: %w", s.artifact, fs.ErrClosed)
	}
	if l.bytes == nil {
		r, err := s.source.Layer(ctx, s.h.Layers[i].ID)
		if err != nil {
			return nil, fmt.Errorf("reading %s: opening the layer of snapshot %s: %w", s.artifact, s.h.Layers[i].ID, err)
		}
		l.bytes = r
	}
	return l.bytes, nil
}

// read fills dst, which is as long as the frame, with the frame's verified
// bytes. scratch is for its stored bytes if it is compressed; it is grown as
// needed. After an error dst holds nothing of the frame.
func (s *layerSet) read(ctx context.Context, key frameKey, dst []byte, scratch *[]byte) error {
	if err := s.load(ctx, key, dst, scratch); err != nil {
		clear(dst)
		return err
	}
	return nil
}

func (s *layerSet) load(ctx context.Context, key frameKey, dst []byte, scratch *[]byte) error {
	if s.cache == nil {
		return s.loadSource(ctx, key, dst, scratch)
	}
	frame := s.h.Layers[key.layer].Frames[key.frame]
	if s.cached(frame, dst) {
		return nil
	}
	err := s.loadSource(ctx, key, dst, scratch)
	var damage *CorruptError
	if errors.As(err, &damage) { // on its way perhaps: it is far away
		err = s.loadSource(ctx, key, dst, scratch)
	}
	if err == nil {
		s.cache.Put(frame.Digest, dst)
	}
	return err
}

// cached fills dst from the cache if that has the right bytes. Wrong ones are
// replaced by whoever fetches the frame next.
func (s *layerSet) cached(frame Frame, dst []byte) bool {
	return s.cache.Get(frame.Digest, dst) && frame.verify(dst) == nil
}

// loadPlain fills dst with neighbouring frames from first on that are stored plain,
// in one read for all that the cache lacks. A frame that is not right is left for
// load; it tells which are.
func (s *layerSet) loadPlain(ctx context.Context, layer, first int, dst []byte) (right []bool, err error) {
	l := s.h.Layers[layer]
	frameSize := int(s.h.FrameSize)
	n := (len(dst) + frameSize - 1) / frameSize
	right = make([]bool, n)
	part := func(i int) []byte { return dst[i*frameSize : min((i+1)*frameSize, len(dst))] }
	from, to := n, 0
	for i := range n {
		if right[i] = s.cached(l.Frames[first+i], part(i)); !right[i] {
			from, to = min(from, i), i+1
		}
	}
	if from >= to {
		return right, nil
	}
	whole := dst[from*frameSize : min(to*frameSize, len(dst))]
	err = s.fetch(ctx, frameKey{layer, first + from}, Frame{Offset: l.Frames[first+from].Offset, Length: len(whole)}, whole)
	var damage *CorruptError
	if errors.As(err, &damage) {
		return make([]bool, n), nil // cut short: frame by frame it shows where
	} else if err != nil {
		return nil, err
	}
	for i := from; i < to; i++ {
		frame := l.Frames[first+i]
		if right[i] = frame.verify(part(i)) == nil; right[i] {
			s.cache.Put(frame.Digest, part(i))
		}
	}
	return right, nil
}

func (s *layerSet) loadSource(ctx context.Context, key frameKey, dst []byte, scratch *[]byte) error {
	frame := s.h.Layers[key.layer].Frames[key.frame]
	stored := dst
	if frame.Codec != Plain {
		if cap(*scratch) < frame.Length {
			*scratch = make([]byte, frame.Length)
		}
		stored = (*scratch)[:frame.Length]
	}
	if err := s.fetch(ctx, key, frame, stored); err != nil {
		return err
	}
	if frame.Codec != Plain {
		if err := s.expand(dst, stored); err != nil {
			return s.corrupt(key, frame, err)
		}
	}
	if err := frame.verify(dst); err != nil {
		return s.corrupt(key, frame, err)
	}
	return nil
}

// fetch reads the stored bytes of a frame.
func (s *layerSet) fetch(ctx context.Context, key frameKey, frame Frame, stored []byte) error {
	r, err := s.layer(ctx, key.layer)
	if err != nil && isDamage(err) {
		return s.corrupt(key, frame, err)
	} else if err != nil {
		return err
	}
	n, err := r.ReadAt(stored, frame.Offset)
	switch {
	case n == len(stored): // io.ReaderAt may say EOF with the last bytes
		return nil
	case isDamage(err):
		return s.corrupt(key, frame, err)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return s.corrupt(key, frame, fmt.Errorf("only %d bytes are there: %w", n, io.ErrUnexpectedEOF))
	case err == nil:
		err = io.ErrNoProgress
	}
	return fmt.Errorf("reading %s: frame %d of the layer of snapshot %s: %w", s.artifact, key.frame, s.h.Layers[key.layer].ID, err)
}

// isDamage tells whether a source says that its own form of the bytes is damaged.
func isDamage(err error) bool {
	var said interface{ Damaged() bool }
	return errors.As(err, &said) && said.Damaged()
}

// expand decompresses a frame into dst, which it must fill exactly.
func (s *layerSet) expand(dst, stored []byte) error {
	decoder, err := s.unzstd()
	if err != nil {
		return err
	}
	// The capacity is the limit: what goes beyond is an error, not memory.
	out, err := decoder.DecodeAll(stored, dst[:0:len(dst)])
	if err != nil {
		return fmt.Errorf("decompressing: %w", err)
	}
	if len(out) != len(dst) {
		return fmt.Errorf("decompressing: %d bytes, need %d", len(out), len(dst))
	}
	return nil
}

func (s *layerSet) corrupt(key frameKey, frame Frame, err error) error {
	return &CorruptError{
		Artifact: s.artifact,
		Layer:    s.h.Layers[key.layer].ID,
		Frame:    key.frame,
		Offset:   frame.Offset,
		Length:   frame.Length,
		Err:      err,
	}
}

// close closes what is open and keeps the rest from being opened.
func (s *layerSet) close() error {
	var errs []error
	for i := range s.open {
		l := &s.open[i]
		l.mu.Lock()
		if c, ok := l.bytes.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
		l.bytes, l.closed = nil, true
		l.mu.Unlock()
	}
	return errors.Join(errs...)
}
