package block

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// CopyStream copies the layer that the snapshot id stored from r, where its stored
// bytes come one after another, to w. Every frame is verified before it is written,
// and nothing may follow the last. progress, if not nil, is told how many bytes
// were copied since the last call.
func (h *Header) CopyStream(ctx context.Context, id uuid.UUID, w io.Writer, r io.Reader, progress func(n int64)) error {
	l, _ := h.Layer(id) // a layer that is not there has no frames
	s := newLayerSet("", h, nil)
	raw, stored := make([]byte, h.FrameSize), []byte(nil)
	for i, f := range l.Frames {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if cap(stored) < f.Length {
			stored = make([]byte, max(f.Length, int(h.FrameSize)))
		}
		p := stored[:f.Length]
		if _, err := io.ReadFull(r, p); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("frame %d: %w", i, err)
		}
		plain := p
		if f.Codec != Plain {
			plain = raw[:l.frameLength(i, h.FrameSize)]
			if err := s.expand(plain, p); err != nil {
				return fmt.Errorf("frame %d: %w", i, err)
			}
		}
		if err := f.verify(plain); err != nil {
			return fmt.Errorf("frame %d: %w", i, err)
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		if progress != nil {
			progress(int64(len(p)))
		}
	}
	if n, _ := io.ReadFull(r, make([]byte, 1)); n > 0 {
		return errors.New("more bytes than its header describes")
	}
	return nil
}
