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
	// it returns is closed by the reader that asked if it is an io.Closer.
	Layer(ctx context.Context, id uuid.UUID) (io.ReaderAt, error)
}

// layerSet reads and verifies frames of a header's layers, each opened when it is
// first needed.
type layerSet struct {
	artifact string
	h        *Header
	source   Source
	open     []openLayer // one for each of the header's layers
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
	if err != nil {
		return err
	}
	n, err := r.ReadAt(stored, frame.Offset)
	switch {
	case n == len(stored): // io.ReaderAt may say EOF with the last bytes
		return nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return s.corrupt(key, frame, fmt.Errorf("only %d bytes are there: %w", n, io.ErrUnexpectedEOF))
	case err == nil:
		err = io.ErrNoProgress
	}
	return fmt.Errorf("reading %s: frame %d of the layer of snapshot %s: %w", s.artifact, key.frame, s.h.Layers[key.layer].ID, err)
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
