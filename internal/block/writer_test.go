package block_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/sporevm/spore/internal/block"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small are options for an image of 16 blocks of 1 KiB.
func small() block.WriterOptions {
	return block.WriterOptions{BlockSize: kib, FrameSize: 4 * kib, Size: 16 * kib}
}

func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n*kib) }

func TestWriterPacksAndSkips(t *testing.T) {
	var stored bytes.Buffer
	w := block.NewWriter(&stored, uuid.UUID{2}, small())
	content := join(filled(1, 'a'), filled(2, 0), filled(1, 'b'))
	for _, err := range []error{
		w.Write(kib, content),
		w.Write(5*kib, nil),
		w.Write(5*kib, filled(1, 'c')), // goes on where the last one ended
		w.Zero(8*kib, 2*kib),
		w.Zero(10*kib, 0),
		w.WriteChanged(10*kib, join(filled(1, 'd'), filled(1, 'e'), filled(1, 0), filled(1, 'f')),
			join(filled(1, 'd'), filled(1, 'x'), filled(1, 'x'), filled(1, 'f'))),
		w.Write(15*kib, filled(1, 'g')),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	base := image(1, 16, []block.Layer{layerOf(1, 16)}, run(0, 16, 0, 0))
	base.Generation = 7
	h, stats, err := w.Finish(base)
	if err != nil {
		t.Fatal(err)
	}
	if want := join(filled(1, 'a'), filled(1, 'b'), filled(1, 'c'), filled(1, 'e'), filled(1, 'g')); !bytes.Equal(stored.Bytes(), want) {
		t.Errorf("stored %q, want %q", stored.Bytes(), want)
	}
	if want := (block.Stats{Data: 5 * kib, Zeros: 5 * kib, Stored: 5 * kib, Frames: 2}); stats != want {
		t.Errorf("stats are %+v, want %+v", stats, want)
	}
	if h.ID != (uuid.UUID{2}) || h.Parent != base.ID || h.Generation != 8 {
		t.Errorf("header of %s, parent %s, generation %d", h.ID, h.Parent, h.Generation)
	}
	want := []block.Run{
		run(0, 1, 0, 0), run(1, 1, 1, 0), hole(2, 2), run(4, 2, 1, 1), run(6, 2, 0, 6), hole(8, 2),
		run(10, 1, 0, 10), run(11, 1, 1, 3), hole(12, 1), run(13, 2, 0, 13), run(15, 1, 1, 4),
	}
	requireSame(t, image(1, 16, nil, h.Runs...), image(1, 16, nil, want...))
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// A layer without data is no layer, and needs no file to read.
func TestWriterOfNothing(t *testing.T) {
	var stored bytes.Buffer
	w := block.NewWriter(&stored, uuid.UUID{2}, small())
	if err := w.Write(0, filled(3, 0)); err != nil {
		t.Fatal(err)
	}
	h, stats, err := w.Finish(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Layers) != 0 || stored.Len() != 0 || stats != (block.Stats{Zeros: 3 * kib}) {
		t.Errorf("%d layers, %d bytes, stats %+v", len(h.Layers), stored.Len(), stats)
	}
	p := filled(16, 1)
	if n, err := block.NewReader("image", h, memory{}).ReadAt(p, 0); n != len(p) || err != nil || !block.IsZero(p) {
		t.Errorf("reads %d bytes, %v", n, err)
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		call func(w *block.Writer) error
		want string
	}{
		"backwards":       {func(w *block.Writer) error { return w.Write(0, filled(1, 1)) }, "before 4096"},
		"zero backwards":  {func(w *block.Writer) error { return w.Zero(3*kib, kib) }, "before 4096"},
		"negative":        {func(w *block.Writer) error { return w.Write(-kib, filled(1, 1)) }, "before 4096"},
		"odd offset":      {func(w *block.Writer) error { return w.Write(5*kib+1, filled(1, 1)) }, "not aligned"},
		"odd length":      {func(w *block.Writer) error { return w.Write(5*kib, []byte{1}) }, "not aligned"},
		"over the end":    {func(w *block.Writer) error { return w.Write(15*kib, filled(2, 1)) }, "not inside"},
		"after the end":   {func(w *block.Writer) error { return w.Zero(1<<62, kib) }, "not inside"},
		"wraps":           {func(w *block.Writer) error { return w.Zero(8*kib, 1<<63-kib) }, "not inside"},
		"negative length": {func(w *block.Writer) error { return w.Zero(8*kib, -kib) }, "not inside"},
		"unlike lengths":  {func(w *block.Writer) error { return w.WriteChanged(8*kib, filled(2, 1), filled(1, 1)) }, "compared with"},
		"odd comparison":  {func(w *block.Writer) error { return w.WriteChanged(8*kib, []byte{1}, []byte{2}) }, "not aligned"},
	} {
		t.Run(name, func(t *testing.T) {
			var stored bytes.Buffer
			w := block.NewWriter(&stored, uuid.UUID{2}, small())
			if err := w.Write(0, filled(4, 1)); err != nil {
				t.Fatal(err)
			}
			err := c.call(w)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error is %v, want one with %q", err, c.want)
			}
			if again := w.Write(8*kib, filled(1, 1)); !errors.Is(again, err) {
				t.Errorf("the next call says %v", again)
			}
			if _, _, last := w.Finish(nil); !errors.Is(last, err) {
				t.Errorf("Finish says %v", last)
			}
		})
	}
}

func TestWriterRefusesOptions(t *testing.T) {
	for name, spoil := range map[string]func(o *block.WriterOptions){
		"no size":       func(o *block.WriterOptions) { o.Size = 0 },
		"odd size":      func(o *block.WriterOptions) { o.Size++ },
		"block size":    func(o *block.WriterOptions) { o.BlockSize = 3 },
		"frame size":    func(o *block.WriterOptions) { o.FrameSize = -1 },
		"unknown codec": func(o *block.WriterOptions) { o.Codec = 9 },
	} {
		o := small()
		spoil(&o)
		w := block.NewWriter(io.Discard, uuid.UUID{2}, o)
		if err := w.Write(0, filled(1, 1)); err == nil {
			t.Errorf("%s: writing works", name)
		}
		if _, _, err := w.Finish(nil); err == nil {
			t.Errorf("%s: finishing works", name)
		}
	}
	w := block.NewWriter(io.Discard, uuid.Nil, small())
	if _, _, err := w.Finish(nil); !errors.Is(err, block.ErrHeader) {
		t.Errorf("without an id, finishing says %v", err)
	}
}

func TestWriterDefaults(t *testing.T) {
	for blockSize, want := range map[int64][2]int64{0: {4 << 10, 64 << 10}, 2 << 20: {2 << 20, 2 << 20}} {
		h, _, err := block.NewWriter(io.Discard, uuid.UUID{2}, block.WriterOptions{BlockSize: blockSize, Size: 4 << 20}).Finish(nil)
		if err != nil || h.BlockSize != want[0] || h.FrameSize != want[1] {
			t.Errorf("block size %d: header %+v, error %v", blockSize, h, err)
		}
	}
}

func TestWriterEnds(t *testing.T) {
	w := block.NewWriter(io.Discard, uuid.UUID{2}, small())
	if _, _, err := w.Finish(nil); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if err := w.Write(0, filled(1, 1)); err == nil {
		t.Error("writing works after Finish")
	}
	if _, _, err := w.Finish(nil); err == nil {
		t.Error("Finish works twice")
	}

	w = block.NewWriter(io.Discard, uuid.UUID{2}, small())
	w.Abort()
	w.Abort()
	if _, _, err := w.Finish(nil); err == nil {
		t.Error("Finish works after Abort")
	}
}

// full is a disk that has room for some bytes.
type full struct {
	room    int
	quietly bool // writes short without an error
	written int
}

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), f.room)
	f.room -= n
	f.written += n
	if n < len(p) && !f.quietly {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func TestWriterOnFullDisk(t *testing.T) {
	for name, c := range map[string]struct {
		disk *full
		want error
	}{
		"error":       {&full{room: 10_000}, syscall.ENOSPC},
		"short write": {&full{room: 10_000, quietly: true}, io.ErrShortWrite},
	} {
		t.Run(name, func(t *testing.T) {
			o := small()
			o.Size = 64 << 20
			w := block.NewWriter(c.disk, uuid.UUID{2}, o)
			var err error
			at := int64(0)
			for ; err == nil && at < o.Size; at += 64 * kib {
				err = w.Write(at, filled(64, 1))
			}
			if !errors.Is(err, c.want) || at == o.Size {
				t.Errorf("writing says %v after %d bytes", err, at)
			}
			if _, _, err := w.Finish(nil); !errors.Is(err, c.want) {
				t.Errorf("finishing says %v", err)
			}
		})
	}
	// Few bytes: only Finish can tell.
	w := block.NewWriter(&full{}, uuid.UUID{2}, small())
	if err := w.Write(0, filled(1, 1)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Finish(nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("finishing says %v", err)
	}
}

// An aborted writer leaves the file alone once Abort has returned, and leaves no
// goroutines behind (which TestMain sees).
func TestWriterAborts(t *testing.T) {
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		o := small()
		o.Size, o.Codec = 64<<20, codec
		disk := &full{room: 64 << 20}
		w := block.NewWriter(disk, uuid.UUID{2}, o)
		for at := int64(0); at < 4<<20; at += 64 * kib {
			if err := w.Write(at, filled(64, 1)); err != nil {
				t.Fatal(err)
			}
		}
		w.Abort()
		if disk.written > 4<<20 {
			t.Errorf("%d bytes written", disk.written)
		}
	}
}

// Compression that does not help is not used, frame by frame.
func TestWriterCompressesWhatShrinks(t *testing.T) {
	o := small()
	o.Codec = block.Zstd
	content := filled(16, 'a')
	noise(content[4*kib:8*kib], 3)
	var stored bytes.Buffer
	w := block.NewWriter(&stored, uuid.UUID{2}, o)
	if err := w.Write(0, content); err != nil {
		t.Fatal(err)
	}
	h, stats, err := w.Finish(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []block.Codec{block.Zstd, block.Plain, block.Zstd, block.Zstd} {
		if f := h.Layers[0].Frames[i]; f.Codec != want || f.Digest != block.Sum(content[i*4*kib:(i+1)*4*kib]) {
			t.Errorf("frame %d is %s with digest %s", i, f.Codec, f.Digest)
		}
	}
	if stats.Stored != int64(stored.Len()) || stats.Stored >= stats.Data || h.Layers[0].StoredSize() != stats.Stored {
		t.Errorf("%d bytes stored, stats %+v", stored.Len(), stats)
	}
}
