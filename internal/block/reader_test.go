package block_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// counted is a Source that counts what is opened, read and closed, and can fail.
type counted struct {
	layers memory
	fail   func(offset int64) error

	opened, closed, reads, bytes atomic.Int64
}

type countedLayer struct {
	*counted
	r io.ReaderAt
}

func (c *counted) Layer(ctx context.Context, id uuid.UUID) (io.ReaderAt, error) {
	r, err := c.layers.Layer(ctx, id)
	if err != nil {
		return nil, err
	}
	c.opened.Add(1)
	return countedLayer{c, r}, nil
}

func (l countedLayer) ReadAt(p []byte, offset int64) (int, error) {
	l.reads.Add(1)
	l.bytes.Add(int64(len(p)))
	if l.fail != nil {
		if err := l.fail(offset); err != nil {
			return 0, err
		}
	}
	return l.r.ReadAt(p, offset)
}

func (l countedLayer) Close() error {
	l.closed.Add(1)
	return nil
}

// stored is an image of noise of the given KiB, with its layer.
func stored(t testing.TB, o block.WriterOptions) (*block.Header, memory, []byte) {
	t.Helper()
	content := mixed(o.Size)
	var b bytes.Buffer
	w := block.NewWriter(&b, uuid.UUID{2}, o)
	defer w.Abort()
	if err := w.Write(0, content); err != nil {
		t.Fatal(err)
	}
	h, _, err := w.Finish(nil)
	if err != nil {
		t.Fatal(err)
	}
	return h, memory{h.ID: b.Bytes()}, content
}

func eachCodec(t *testing.T, f func(t *testing.T, o block.WriterOptions)) {
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		o := small()
		o.Codec = codec
		t.Run(codec.String(), func(t *testing.T) { f(t, o) })
	}
}

// Wherever a byte is spoilt, reading it is an error that names the frame, and no
// byte of that frame gets out; all other frames still read.
func TestEveryFlippedByteIsFound(t *testing.T) {
	eachCodec(t, func(t *testing.T, o block.WriterOptions) {
		o.BlockSize, o.FrameSize, o.Size = 512, kib, 3*kib-512
		h, layers, content := stored(t, o)
		good := layers[h.ID]
		harmless := 0
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << (i % 8)
			if o.Codec == block.Zstd && readsAlike(h, memory{h.ID: bad}, content) {
				harmless++
				continue
			}
			requireOneBadFrame(t, h, memory{h.ID: bad}, content, frameAt(h, int64(i)))
		}
		// The format of zstd has bits that mean nothing, such as one in its header.
		if harmless > len(h.Layers[0].Frames) {
			t.Errorf("%d flipped bits made no difference", harmless)
		}
	})
}

func readsAlike(h *block.Header, layers memory, content []byte) bool {
	p := make([]byte, len(content))
	_, err := block.NewReader("image", h, layers).ReadAt(p, 0)
	return err == nil && bytes.Equal(p, content)
}

// frameAt is the frame that stored byte i belongs to.
func frameAt(h *block.Header, i int64) int {
	for n, f := range h.Layers[0].Frames {
		if i < f.Offset+int64(f.Length) {
			return n
		}
	}
	return -1
}

func requireOneBadFrame(t *testing.T, h *block.Header, layers memory, content []byte, bad int) {
	t.Helper()
	r := block.NewReader("memfile of snapshot x", h, layers)
	defer r.Close()
	size := int(h.FrameSize)
	from, to := bad*size, min((bad+1)*size, len(content))

	// All at once: the frames before the bad one arrive, the rest is not data.
	p := bytes.Repeat([]byte{0xaa}, len(content))
	n, err := r.ReadAt(p, 0)
	requireCorrupt(t, err, h, bad)
	if n != from || !bytes.Equal(p[:n], content[:n]) || !block.IsZero(p[from:to]) {
		t.Fatalf("%d bytes read before frame %d", n, bad)
	}
	// Piece by piece, through the cache.
	piece := make([]byte, 100)
	for at := 0; at+len(piece) <= len(content); at += 700 {
		_, err := r.ReadAt(piece, int64(at))
		if inside := at+len(piece) > from && at < to; inside {
			requireCorrupt(t, err, h, bad)
		} else if err != nil || !bytes.Equal(piece, content[at:at+len(piece)]) {
			t.Fatalf("reading at %d, outside of frame %d: %v", at, bad, err)
		}
	}
	copied := make(file, len(content))
	requireCorrupt(t, r.CopyTo(t.Context(), copied, nil), h, bad)
	if !block.IsZero(copied[from:to]) {
		t.Fatal("spoilt bytes were copied")
	}
	requireCorrupt(t, r.Verify(t.Context(), nil), h, bad)
}

func requireCorrupt(t *testing.T, err error, h *block.Header, frame int) {
	t.Helper()
	var corrupt *block.CorruptError
	if !errors.As(err, &corrupt) {
		t.Fatalf("error is %v, want one about corruption", err)
	}
	want := h.Layers[0].Frames[frame]
	if corrupt.Frame != frame || corrupt.Layer != h.Layers[0].ID || corrupt.Offset != want.Offset || corrupt.Length != want.Length ||
		corrupt.Artifact != "memfile of snapshot x" || corrupt.Err == nil {
		t.Fatalf("error is %#v, want frame %d", corrupt, frame)
	}
}

func TestTruncatedLayer(t *testing.T) {
	eachCodec(t, func(t *testing.T, o block.WriterOptions) {
		h, layers, content := stored(t, o)
		good := layers[h.ID]
		frames := h.Layers[0].Frames
		last := len(frames) - 1
		for n := frames[last].Offset; n < int64(len(good)); n += 100 {
			requireOneBadFrame(t, h, memory{h.ID: good[:n]}, content, last)
		}
		r := block.NewReader("memfile of snapshot x", h, memory{h.ID: nil})
		_, err := r.ReadAt(make([]byte, 1), 0)
		requireCorrupt(t, err, h, 0)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the error of an empty layer is %v", err)
		}
	})
}

// The file of another snapshot in the place of the right one is found out.
func TestSwappedLayer(t *testing.T) {
	h, _, _ := stored(t, small())
	other := filled(16, 'x')
	r := block.NewReader("memfile of snapshot x", h, memory{h.ID: other})
	_, err := r.ReadAt(make([]byte, 1), 0)
	requireCorrupt(t, err, h, 0)
	err = r.Verify(t.Context(), nil)
	for i := range h.Layers[0].Frames {
		if !strings.Contains(err.Error(), "frame "+string(rune('0'+i))+" ") {
			t.Errorf("frame %d is not in: %v", i, err)
		}
	}
}

func TestVerifyGivesUp(t *testing.T) {
	o := small()
	o.Size = 1 << 20
	h, _, _ := stored(t, o)
	err := block.NewReader("image", h, memory{h.ID: make([]byte, o.Size)}).Verify(t.Context(), nil)
	if n := strings.Count(err.Error(), "is corrupt"); n != 16 || !strings.Contains(err.Error(), "stopped after 16") {
		t.Errorf("%d corrupt frames listed: %v", n, err)
	}
}

func TestMissingLayer(t *testing.T) {
	h, layers, content := stored(t, small())
	empty := memory{}
	r := block.NewReader("memfile of snapshot x", h, empty)
	p := make([]byte, 10)
	for _, read := range []func() error{
		func() error { _, err := r.ReadAt(p, 0); return err },
		func() error { return r.CopyTo(t.Context(), make(file, h.Size), nil) },
		func() error { return r.Verify(t.Context(), nil) },
	} {
		err := read()
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "memfile of snapshot x") || !strings.Contains(err.Error(), h.ID.String()) {
			t.Errorf("error is %v", err)
		}
	}
	// It is not held against the reader when the layer comes back.
	empty[h.ID] = layers[h.ID]
	if _, err := r.ReadAt(p, 0); err != nil || !bytes.Equal(p, content[:10]) {
		t.Errorf("after it came back: %v", err)
	}
}

// An error of the disk is not corruption, and passes.
func TestReadError(t *testing.T) {
	h, layers, content := stored(t, small())
	broken := errors.New("cable pulled")
	var plugged atomic.Bool
	source := &counted{layers: layers, fail: func(offset int64) error {
		if offset >= 4*kib && !plugged.Load() {
			return broken
		}
		return nil
	}}
	r := block.NewReader("memfile of snapshot x", h, source)
	p := make([]byte, 16*kib)
	n, err := r.ReadAt(p, 0)
	var corrupt *block.CorruptError
	if n != 4*kib || !errors.Is(err, broken) || errors.As(err, &corrupt) {
		t.Errorf("%d bytes, error %v", n, err)
	}
	if err := r.Verify(t.Context(), nil); !errors.Is(err, broken) {
		t.Errorf("verifying says %v", err)
	}
	plugged.Store(true)
	if _, err := r.ReadAt(p, 0); err != nil || !bytes.Equal(p, content) {
		t.Errorf("plugged in again: %v", err)
	}
}

func TestReadAtEnds(t *testing.T) {
	h, layers, _ := stored(t, small())
	r := block.NewReader("image", h, layers)
	p := make([]byte, 2)
	for _, c := range []struct {
		offset int64
		n      int
		err    error
	}{{h.Size - 2, 2, nil}, {h.Size - 1, 1, io.EOF}, {h.Size, 0, io.EOF}, {1 << 62, 0, io.EOF}} {
		if n, err := r.ReadAt(p, c.offset); n != c.n || err != c.err {
			t.Errorf("at %d: %d bytes, %v; want %d, %v", c.offset, n, err, c.n, c.err)
		}
	}
	if n, err := r.ReadAt(p, -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("at -1: %d bytes, %v", n, err)
	}
	if n, err := r.ReadAt(nil, 5); n != 0 || err != nil {
		t.Errorf("nothing: %d bytes, %v", n, err)
	}
}

func TestReaderCloses(t *testing.T) {
	h, layers, _ := stored(t, small())
	source := &counted{layers: layers}
	r := block.NewReader("image", h, source)
	if r.Size() != h.Size || r.Header() != h {
		t.Errorf("size %d, header %p", r.Size(), r.Header())
	}
	if _, err := r.ReadAt(make([]byte, 16*kib), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if source.opened.Load() != 1 || source.closed.Load() != 1 {
		t.Errorf("opened %d times, closed %d times", source.opened.Load(), source.closed.Load())
	}
	if _, err := r.ReadAt(make([]byte, 16*kib), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("reading after Close says %v", err)
	}
}

func TestReadAtContextCanceled(t *testing.T) {
	h, layers, _ := stored(t, small())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := block.NewReader("image", h, layers)
	if _, err := r.ReadAtContext(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("reading says %v", err)
	}
	if err := r.CopyTo(ctx, make(file, h.Size), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("copying says %v", err)
	}
	if err := r.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("verifying says %v", err)
	}
}

// Small reads of one frame cost one load, however many ask at once; and the
// cache forgets: it is bounded.
func TestReaderCaches(t *testing.T) {
	o := block.WriterOptions{Size: 32 << 20}
	h, layers, content := stored(t, o)
	source := &counted{layers: layers}
	r := block.NewReader("image", h, source)
	defer r.Close()

	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			p := make([]byte, 100)
			for at := i; at+len(p) <= block.DefaultFrameSize; at += 1000 {
				if _, err := r.ReadAt(p, int64(at)); err != nil || !bytes.Equal(p, content[at:at+100]) {
					t.Errorf("reading at %d: %v", at, err)
				}
			}
		})
	}
	all.Wait()
	if n := source.reads.Load(); n != 1 {
		t.Errorf("one frame was loaded %d times", n)
	}

	touch := func(frame int) int64 {
		before := source.reads.Load()
		if _, err := r.ReadAt(make([]byte, 1), int64(frame)*block.DefaultFrameSize); err != nil {
			t.Fatal(err)
		}
		return source.reads.Load() - before
	}
	held := (16 << 20) / block.DefaultFrameSize
	for frame := 1; frame < held; frame++ {
		touch(frame)
	}
	if touch(0) != 0 {
		t.Error("frame 0 was forgotten though there is room")
	}
	touch(held)
	if touch(0) != 0 || touch(1) != 1 {
		t.Error("what goes is not what was used least recently")
	}

	// Whole frames pass by the cache but use what it has.
	before := source.reads.Load()
	frame := make([]byte, block.DefaultFrameSize)
	for range 2 {
		if _, err := r.ReadAt(frame, 31<<20); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.ReadAt(frame, 0); err != nil || !bytes.Equal(frame, content[:len(frame)]) {
		t.Fatalf("reading frame 0: %v", err)
	}
	if n := source.reads.Load() - before; n != 2 {
		t.Errorf("%d loads, want 2", n)
	}
}

func TestReaderServesMany(t *testing.T) {
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		h, layers, content := stored(t, block.WriterOptions{Size: 2 << 20, Codec: codec})
		r := block.NewReader("image", h, layers)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 0))
				for range 100 {
					p := make([]byte, rng.IntN(200*kib))
					at := rng.IntN(len(content) - len(p))
					if _, err := r.ReadAt(p, int64(at)); err != nil || !bytes.Equal(p, content[at:at+len(p)]) {
						t.Errorf("%d bytes at %d: %v", len(p), at, err)
					}
				}
			})
		}
		all.Wait()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
