package block_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/sporevm/spore/internal/block"
)

func addHeaders(f *testing.F, add func(p []byte)) {
	f.Helper()
	for _, name := range []string{"plain-base", "plain-top", "zstd-base", "zstd-top"} {
		p, err := os.ReadFile(golden(name + ".header"))
		if err != nil {
			f.Fatal(err)
		}
		add(p)
	}
	p, err := valid().MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	add(p)
}

// Any bytes are refused, or are the one encoding of a valid header that can be
// worked with.
func FuzzDecodeHeader(f *testing.F) {
	addHeaders(f, func(p []byte) { f.Add(p) })
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := block.DecodeHeader(bytes.NewReader(p))
		if err != nil {
			if !errors.Is(err, block.ErrHeader) {
				t.Fatalf("error is %v", err)
			}
			return
		}
		if again := must(h.MarshalBinary())(t); !bytes.Equal(again, p) {
			t.Fatal("it is encoded otherwise")
		}
		if u := h.Usage(); u.Data()+u.Holes != h.Size {
			t.Fatalf("usage %+v does not add up to %d", u, h.Size)
		}
		// There are no layers, so all that can be read is holes.
		r := block.NewReader("image", h, memory{})
		defer r.Close()
		b := []byte{1, 1, 1}
		if n, err := r.ReadAt(b, h.Size/2); err == nil && !block.IsZero(b[:n]) {
			t.Fatal("data from nowhere")
		}
		if err := r.Verify(t.Context(), nil); (err == nil) != (len(h.Layers) == 0 || h.Usage().Data() == 0) {
			t.Fatalf("verifying says %v", err)
		}
	})
}

// Any two valid headers are refused, or merge into a valid one.
func FuzzMerge(f *testing.F) {
	addHeaders(f, func(p []byte) {
		addHeaders(f, func(q []byte) { f.Add(p, q) })
	})
	f.Fuzz(func(t *testing.T, p, q []byte) {
		base, err := block.DecodeHeader(bytes.NewReader(p))
		if err != nil {
			return
		}
		top, err := block.DecodeHeader(bytes.NewReader(q))
		if err != nil {
			return
		}
		diff, err := block.Diff(base, top)
		if err != nil {
			if !errors.Is(err, block.ErrHeader) {
				t.Fatalf("comparing says %v", err)
			}
			return
		}
		merged := must(block.Merge(base, diff))(t)
		if err := merged.Validate(); err != nil {
			t.Fatal(err)
		}
		if got, want := merged.Usage().Holes, top.Usage().Holes; got != want {
			t.Fatalf("%d bytes of holes, want %d", got, want)
		}
	})
}

// Any bytes stored for a frame are refused, or yield the frame's bytes.
func FuzzFrame(f *testing.F) {
	// Small frames, so that many fit into the time.
	content := mixed(4 * kib)
	f.Add(bomb(1000))
	f.Add(sized(1 << 40))
	f.Add(windowed())
	h, layers, _ := stored(f, block.WriterOptions{FrameSize: 4 * kib, Size: 4 * kib, Codec: block.Zstd})
	f.Add(layers[h.ID])
	f.Fuzz(func(t *testing.T, stored []byte) {
		if len(stored) == 0 || len(stored) >= len(content) {
			return
		}
		h, layers := claimed(stored, content)
		p := make([]byte, len(content))
		_, err := block.NewReader("image", h, layers).ReadAt(p, 0)
		var corrupt *block.CorruptError
		if err == nil && !bytes.Equal(p, content) || err != nil && !errors.As(err, &corrupt) {
			t.Fatalf("error is %v", err)
		}
	})
}
