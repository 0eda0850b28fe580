package block_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block"
)

// memory is a Source of layers in memory.
type memory map[uuid.UUID][]byte

func (m memory) Layer(_ context.Context, id uuid.UUID) (io.ReaderAt, error) {
	b, ok := m[id]
	if !ok {
		return nil, fmt.Errorf("layer %s: %w", id, fs.ErrNotExist)
	}
	return bytes.NewReader(b), nil
}

// file is a plain file in memory: what an image must read like.
type file []byte

func (f file) WriteAt(p []byte, offset int64) (int, error) { return copy(f[offset:], p), nil }

// generation is one snapshot of a random history: its header and its bytes.
type generation struct {
	header  *block.Header
	content file
}

// shape is what all snapshots of one history share.
type shape struct {
	blockSize, frameSize int64
	codec                block.Codec
}

func drawShape(t *rapid.T) shape {
	blockSize := int64(512) << rapid.IntRange(0, 2).Draw(t, "block size")
	return shape{
		blockSize: blockSize,
		frameSize: blockSize << rapid.IntRange(0, 3).Draw(t, "frame size"),
		// Mostly plain: a compressor takes a while to set up.
		codec: rapid.SampledFrom([]block.Codec{block.Plain, block.Plain, block.Plain, block.Zstd}).Draw(t, "codec"),
	}
}

// drawGeneration writes a random set of blocks over base, which may be nil.
func drawGeneration(t *rapid.T, store memory, s shape, base *generation) *generation {
	blocks := rapid.Int64Range(1, 40).Draw(t, "blocks")
	if base != nil {
		blocks = max(base.header.Size/s.blockSize, blocks)
	}
	content := make(file, blocks*s.blockSize)
	if base != nil {
		copy(content, base.content)
	}

	id := drawID(t)
	var stored bytes.Buffer
	w := block.NewWriter(&stored, id, block.WriterOptions{
		BlockSize: s.blockSize,
		FrameSize: s.frameSize,
		Size:      blocks * s.blockSize,
		Codec:     s.codec,
	})
	defer w.Abort()
	for at := int64(0); at < blocks; {
		n := rapid.Int64Range(1, min(blocks-at, 8)).Draw(t, "length")
		from, to := at*s.blockSize, (at+n)*s.blockSize
		var err error
		switch rapid.SampledFrom([]string{"skip", "write", "zero", "changed"}).Draw(t, "action") {
		case "write":
			drawBlocks(t, s, content[from:to])
			err = w.Write(from, content[from:to])
		case "zero":
			clear(content[from:to])
			err = w.Zero(from, to-from)
		case "changed":
			old := bytes.Clone(content[from:to])
			drawBlocks(t, s, content[from:to])
			err = w.WriteChanged(from, content[from:to], old)
		}
		if err != nil {
			t.Fatal(err)
		}
		at += n
	}
	var below *block.Header
	if base != nil {
		below = base.header
	}
	h, stats, err := w.Finish(below)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Stored != int64(stored.Len()) {
		t.Fatalf("stats say %d bytes are stored, it is %d", stats.Stored, stored.Len())
	}
	store[id] = stored.Bytes()
	return &generation{header: h, content: content}
}

func drawID(t *rapid.T) uuid.UUID {
	var id uuid.UUID
	copy(id[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes"))
	id[0] |= 1 // not the nil id
	return id
}

// drawBlocks changes some blocks of p: to zero, to noise, or to text that
// compresses.
func drawBlocks(t *rapid.T, s shape, p []byte) {
	for len(p) > 0 {
		b := p[:s.blockSize]
		p = p[s.blockSize:]
		switch rapid.IntRange(0, 4).Draw(t, "fill") {
		case 0:
			clear(b)
		case 1:
			noise(b, rapid.Uint64().Draw(t, "seed"))
		case 2:
			clear(b)
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = 1
		case 3:
			copy(b, bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, len(b)))
		}
	}
}

// noise fills p with bytes that do not compress (xorshift64*).
func noise(p []byte, seed uint64) {
	x := seed | 1
	var word [8]byte
	for len(p) > 0 {
		x ^= x >> 12
		x ^= x << 25
		x ^= x >> 27
		binary.LittleEndian.PutUint64(word[:], x*0x2545f4914f6cdd1d)
		p = p[copy(p, word[:]):]
	}
}

// drawHistory makes a chain of snapshots.
func drawHistory(t *rapid.T, store memory) (shape, []*generation) {
	s := drawShape(t)
	var chain []*generation
	var last *generation
	for range rapid.IntRange(1, 6).Draw(t, "generations") {
		last = drawGeneration(t, store, s, last)
		chain = append(chain, last)
	}
	return s, chain
}

func requireReads(t *rapid.T, store memory, g *generation) {
	t.Helper()
	r := block.NewReader("image under test", g.header, store)
	defer r.Close()
	got := make([]byte, len(g.content))
	if n, err := r.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("reading all: %d bytes of %d, %v", n, len(got), err)
	}
	if !bytes.Equal(got, g.content) {
		t.Fatalf("generation %d does not read back like the file", g.header.Generation)
	}
	for range 4 {
		from := rapid.IntRange(0, len(got)).Draw(t, "from")
		p := make([]byte, rapid.IntRange(0, len(got)).Draw(t, "length"))
		want := g.content[from:min(from+len(p), len(g.content))]
		n, err := r.ReadAt(p, int64(from))
		if !bytes.Equal(p[:n], want) {
			t.Fatalf("reading %d bytes at %d: they differ", len(p), from)
		}
		if short := len(want) < len(p) || from == len(got); short != errors.Is(err, io.EOF) || !short && err != nil {
			t.Fatalf("reading %d bytes at %d of %d: %v", len(p), from, len(got), err)
		}
	}

	copied := make(file, len(g.content))
	var reported int64
	if err := r.CopyTo(context.Background(), copied, func(n int64) { reported += n }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(copied, g.content) {
		t.Fatal("the copy differs")
	}
	if want := g.header.Usage().Data(); reported != want {
		t.Fatalf("progress adds up to %d, want %d", reported, want)
	}
	if err := r.Verify(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
}

// Any sequence of writes and snapshots reads back like a plain file.
func TestHistoryReadsLikeAFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := memory{}
		_, chain := drawHistory(t, store)
		for _, g := range chain {
			requireReads(t, store, g)
		}
	})
}

// An encoded header decodes to what it was.
func TestHistoryEncodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, chain := drawHistory(t, memory{})
		h := chain[len(chain)-1].header
		encoded, err := h.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := block.DecodeHeader(bytes.NewReader(encoded))
		if err != nil {
			t.Fatal(err)
		}
		requireSame(t, decoded, h)
	})
}

// squash rewrites a generation into one layer.
func squash(t *rapid.T, store memory, s shape, g *generation) *generation {
	id := drawID(t)
	var stored bytes.Buffer
	w := block.NewWriter(&stored, id, block.WriterOptions{BlockSize: s.blockSize, FrameSize: s.frameSize, Size: g.header.Size})
	defer w.Abort()
	r := block.NewReader("image", g.header, store)
	defer r.Close()
	if err := r.Squash(context.Background(), w, nil); err != nil {
		t.Fatal(err)
	}
	h, _, err := w.Finish(nil)
	if err != nil {
		t.Fatal(err)
	}
	store[id] = stored.Bytes()
	return &generation{header: h, content: g.content}
}
