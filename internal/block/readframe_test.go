package block_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/sporevm/spore/internal/block"
)

func TestReadFrame(t *testing.T) {
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		h, layers, content := stored(t, block.WriterOptions{Size: 1<<20 + 4<<10, Codec: codec})
		r := block.NewReader("image", h, layers)
		layer := h.Layers[0]
		frame := func(i int) []byte { return make([]byte, min(h.FrameSize, layer.Size-int64(i)*h.FrameSize)) }
		for i := range layer.Frames {
			p := frame(i)
			if err := r.ReadFrame(t.Context(), 0, i, p); err != nil || block.Sum(p) != layer.Frames[i].Digest || !bytes.Contains(content, p) {
				t.Errorf("%v, frame %d: %v", codec, i, err)
			}
		}
		for _, at := range [][3]int{{-1, 0, 0}, {1, 0, 0}, {0, -1, 0}, {0, len(layer.Frames), 0}, {0, 0, 1}, {0, 0, -1}} {
			if err := r.ReadFrame(t.Context(), at[0], at[1], make([]byte, int(h.FrameSize)+at[2])); err == nil {
				t.Errorf("layer %d has a frame %d of %+d bytes", at[0], at[1], at[2])
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.ReadFrame(ctx, 0, 0, frame(0)); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		id := layer.ID
		bad := slices.Clone(layers[id])
		bad[layer.Frames[1].Offset+9] ^= 4
		layers[id] = bad
		damaged := block.NewReader("image", h, layers)
		p := bytes.Repeat([]byte{1}, len(frame(1)))
		var corrupt *block.CorruptError
		if err := damaged.ReadFrame(t.Context(), 0, 1, p); !errors.As(err, &corrupt) || corrupt.Frame != 1 || !block.IsZero(p) {
			t.Errorf("%v, damaged: %v, and bytes of it were given out: %v", codec, err, !block.IsZero(p))
		}
		if err := errors.Join(r.Close(), damaged.Close()); err != nil {
			t.Fatal(err)
		}
		if err := r.ReadFrame(t.Context(), 0, 0, frame(0)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
}
