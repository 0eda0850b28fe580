package block_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// patchwork is an image of 4 MiB in three generations: all of it, then every
// fifth block, then a hole in the middle and a few blocks at the end.
func patchwork(t *testing.T, o block.WriterOptions) (*block.Header, memory, []byte) {
	t.Helper()
	o.Size = 4 << 20
	layers := memory{}
	content := make([]byte, o.Size)
	var last *block.Header
	for generation, write := range []func(w *block.Writer) error{
		func(w *block.Writer) error {
			copy(content, mixed(o.Size))
			return w.Write(0, content)
		},
		func(w *block.Writer) error {
			for at := int64(0); at < o.Size; at += 5 * o.BlockSize {
				p := content[at:min(at+o.BlockSize, o.Size)]
				noise(p, uint64(at))
				if err := w.Write(at, p); err != nil {
					return err
				}
			}
			return nil
		},
		func(w *block.Writer) error {
			clear(content[1<<20 : 3<<20])
			if err := w.Zero(1<<20, 2<<20); err != nil {
				return err
			}
			p := content[o.Size-4*o.BlockSize:]
			noise(p, 3)
			return w.Write(o.Size-int64(len(p)), p)
		},
	} {
		var stored bytes.Buffer
		w := block.NewWriter(&stored, uuid.UUID{1, byte(generation)}, o)
		defer w.Abort()
		if err := write(w); err != nil {
			t.Fatal(err)
		}
		h, _, err := w.Finish(last)
		if err != nil {
			t.Fatal(err)
		}
		layers[h.ID], last = stored.Bytes(), h
	}
	return last, layers, content
}

// Frames smaller than what is copied at once, and larger.
func eachShape(t *testing.T, f func(t *testing.T, o block.WriterOptions)) {
	for name, o := range map[string]block.WriterOptions{
		"4K in 64K":       {BlockSize: 4 << 10, FrameSize: 64 << 10},
		"4K in 64K, zstd": {BlockSize: 4 << 10, FrameSize: 64 << 10, Codec: block.Zstd},
		"64K in 2M":       {BlockSize: 64 << 10, FrameSize: 2 << 20},
		"4K in 4K":        {BlockSize: 4 << 10, FrameSize: 4 << 10},
	} {
		t.Run(name, func(t *testing.T) { f(t, o) })
	}
}

func TestCopyTo(t *testing.T) {
	eachShape(t, func(t *testing.T, o block.WriterOptions) {
		h, layers, content := patchwork(t, o)
		source := &counted{layers: layers}
		r := block.NewReader("image", h, source)
		defer r.Close()
		path := filepath.Join(t.TempDir(), "copy")
		f := must(os.Create(path))(t)
		defer f.Close()
		var copied int64
		if err := r.CopyTo(t.Context(), f, func(n int64) { copied += n }); err != nil {
			t.Fatal(err)
		}
		if got := must(os.ReadFile(path))(t); !bytes.Equal(got, content) {
			t.Error("the copy differs")
		}
		if want := h.Usage().Data(); copied != want {
			t.Errorf("progress adds up to %d, want %d", copied, want)
		}
		// The hole of 2 MiB takes no room.
		var st syscall.Stat_t
		if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if held := st.Blocks * 512; held > h.Size-1<<20 {
			t.Errorf("the copy takes %d bytes on disk", held)
		}
		// No frame is read twice, nor one that is not needed.
		if got, want := source.bytes.Load(), usedFrames(h); got != want {
			t.Errorf("%d bytes read, want %d", got, want)
		}
	})
}

// usedFrames is how many stored bytes an image needs, whole frames counted once.
func usedFrames(h *block.Header) int64 {
	seen := map[[2]int64]bool{}
	var sum int64
	for _, r := range h.Runs {
		for at := r.LayerOffset; !r.IsHole() && at < r.LayerOffset+r.Length; at += h.BlockSize {
			key := [2]int64{int64(r.Layer), at / h.FrameSize}
			if !seen[key] {
				seen[key] = true
				sum += int64(h.Layers[r.Layer].Frames[key[1]].Length)
			}
		}
	}
	return sum
}

func TestSquash(t *testing.T) {
	eachShape(t, func(t *testing.T, o block.WriterOptions) {
		h, layers, content := patchwork(t, o)
		r := block.NewReader("image", h, layers)
		defer r.Close()
		o.Size = h.Size
		var stored bytes.Buffer
		w := block.NewWriter(&stored, uuid.UUID{9}, o)
		defer w.Abort()
		var done int64
		if err := r.Squash(t.Context(), w, func(n int64) { done += n }); err != nil {
			t.Fatal(err)
		}
		squashed, _, err := w.Finish(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(squashed.Layers) != 1 || squashed.Parent != uuid.Nil || done != h.Usage().Data() {
			t.Errorf("%d layers, parent %s, progress %d", len(squashed.Layers), squashed.Parent, done)
		}
		got := make([]byte, h.Size)
		if _, err := block.NewReader("image", squashed, memory{{9}: stored.Bytes()}).ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
			t.Errorf("it reads otherwise, error %v", err)
		}
	})
}

func TestSquashFails(t *testing.T) {
	h, layers, _ := stored(t, small())
	squash := func(layers memory, size int64) error {
		o := small()
		o.Size = size
		w := block.NewWriter(&bytes.Buffer{}, uuid.UUID{9}, o)
		defer w.Abort()
		return block.NewReader("memfile of snapshot x", h, layers).Squash(t.Context(), w, nil)
	}
	requireCorrupt(t, squash(memory{h.ID: nil}, h.Size), h, 0)
	if err := squash(layers, h.Size-kib); err == nil {
		t.Error("an image fits into a smaller one")
	}
	bad := *h
	bad.Size = 0
	w := block.NewWriter(&bytes.Buffer{}, uuid.UUID{9}, small())
	defer w.Abort()
	if err := block.NewReader("image", &bad, layers).Squash(t.Context(), w, nil); !errors.Is(err, block.ErrHeader) {
		t.Errorf("an invalid header: %v", err)
	}
}

// fullFile is a file on a disk without room.
type fullFile struct{ truncate, write error }

func (f fullFile) Truncate(int64) error                   { return f.truncate }
func (f fullFile) WriteAt(p []byte, _ int64) (int, error) { return 0, f.write }

func TestCopyToFullDisk(t *testing.T) {
	h, layers, _ := stored(t, block.WriterOptions{Size: 8 << 20})
	r := block.NewReader("image", h, layers)
	for _, f := range []fullFile{{truncate: syscall.EFBIG}, {write: syscall.ENOSPC}} {
		if err := r.CopyTo(t.Context(), f, nil); !errors.Is(err, syscall.EFBIG) && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("error is %v", err)
		}
	}
}
