package block_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// scattered is a header of count runs: single blocks of one layer, each followed
// by a gap or, in a whole header, by a hole.
func scattered(count, seed int, whole bool) *block.Header {
	const size = block.DefaultBlockSize
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	h := &block.Header{
		ID:        uuid.UUID{1, byte(seed)},
		BlockSize: size,
		FrameSize: block.DefaultFrameSize,
		Size:      int64(count) * 8 * size,
	}
	l := block.Layer{ID: h.ID}
	var end int64
	for len(h.Runs) < count {
		n := 1 + rng.Int64N(3)
		h.Runs = append(h.Runs, block.Run{Offset: end, Length: n * size, Layer: 0, LayerOffset: l.Size})
		end, l.Size = end+n*size, l.Size+n*size
		n = 1 + rng.Int64N(3)
		if whole {
			h.Runs = append(h.Runs, block.Run{Offset: end, Length: n * size, Layer: block.Hole})
		}
		end += n * size
	}
	if whole {
		h.Runs[len(h.Runs)-1].Length = h.Size - h.Runs[len(h.Runs)-1].Offset
	}
	for at := int64(0); at < l.Size; at += h.FrameSize {
		f := block.Frame{Offset: at, Length: int(min(h.FrameSize, l.Size-at))}
		f.Digest[0] = byte(at)
		l.Frames = append(l.Frames, f)
	}
	h.Layers = []block.Layer{l}
	return h
}

// Two headers of 100,000 runs each; wanted: 20 ms at most.
func BenchmarkMerge(b *testing.B) {
	base, diff := scattered(100_000, 1, true), scattered(100_000, 2, false)
	var merged *block.Header
	for b.Loop() {
		var err error
		if merged, err = block.Merge(base, diff); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(merged.Runs)), "runs")
}

func BenchmarkDiff(b *testing.B) {
	base, diff := scattered(100_000, 1, true), scattered(100_000, 2, false)
	merged, err := block.Merge(base, diff)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := block.Diff(base, merged); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHeader(b *testing.B) {
	h := scattered(100_000, 1, true)
	encoded, err := h.MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(encoded)))
		for b.Loop() {
			if _, err := h.MarshalBinary(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(encoded)))
		for b.Loop() {
			if _, err := block.DecodeHeader(bytes.NewReader(encoded)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The header of a hundredth generation: 512 MiB of which each wrote 8 anew.
func BenchmarkOpenHundredth(b *testing.B) {
	const size, change = 512 << 20, 8 << 20
	rng := rand.New(rand.NewPCG(1, 1))
	content := mixed(change)
	var h *block.Header
	for generation := range 100 {
		w := block.NewWriter(io.Discard, uuid.UUID{1, byte(generation)}, block.WriterOptions{Size: size})
		p, gap := content, int64(2*(size-change)/(change/block.DefaultFrameSize))
		for at := int64(0); len(p) > 0; {
			at += rng.Int64N(gap/block.DefaultBlockSize) * block.DefaultBlockSize
			n := min(int64(1+rng.IntN(31))*block.DefaultBlockSize, int64(len(p)), size-at)
			if n <= 0 {
				break
			}
			if err := w.Write(at, p[:n]); err != nil {
				b.Fatal(err)
			}
			at, p = at+n, p[n:]
		}
		var err error
		if h, _, err = w.Finish(h); err != nil {
			b.Fatal(err)
		}
	}
	encoded, err := h.MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		block.Sum(encoded)
		if _, err := block.DecodeHeader(bytes.NewReader(encoded)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(encoded)), "header-bytes")
	b.ReportMetric(float64(len(h.Runs)), "runs")
	b.ReportMetric(float64(len(h.Layers)), "layers")
}

// layerFile is an image of size bytes of noise, its one layer in a file.
func layerFile(b *testing.B, size int64, codec block.Codec) (*block.Header, block.Source) {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "layer"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	w := block.NewWriter(f, uuid.UUID{1}, block.WriterOptions{Size: size, Codec: codec})
	defer w.Abort()
	if err := w.Write(0, mixed(size)); err != nil {
		b.Fatal(err)
	}
	h, _, err := w.Finish(nil)
	if err != nil {
		b.Fatal(err)
	}
	return h, fileSource{f}
}

// mixed is bytes of which about half compress away.
func mixed(size int64) []byte {
	p := make([]byte, size)
	for at := 0; at < len(p); at += 512 {
		noise(p[at:at+256], uint64(at))
	}
	return p
}

// fileSource serves one file as every layer. It is not closed by readers.
type fileSource struct{ f *os.File }

func (s fileSource) Layer(context.Context, uuid.UUID) (io.ReaderAt, error) {
	return struct{ io.ReaderAt }{s.f}, nil
}

// Verification of frames that are in memory, against nothing but hashing the
// same bytes; wanted: of_hash at least 0.8.
func BenchmarkVerifyFrame(b *testing.B) {
	const size = 32 << 20
	content := mixed(size)
	store := memory{{1}: content}
	h := oneLayer(content)
	r := block.NewReader("image", h, store)
	frame := make([]byte, block.DefaultFrameSize)
	var hashing, verifying time.Duration
	b.SetBytes(size)
	for b.Loop() {
		start := time.Now()
		for at := 0; at < size; at += len(frame) {
			if block.Sum(content[at:at+len(frame)]) == (block.Digest{}) {
				b.Fatal("no digest")
			}
		}
		half := time.Now()
		for at := 0; at < size; at += len(frame) {
			if _, err := r.ReadAt(frame, int64(at)); err != nil {
				b.Fatal(err)
			}
		}
		hashing, verifying = hashing+half.Sub(start), verifying+time.Since(half)
	}
	b.ReportMetric(float64(hashing)/float64(verifying), "of_hash")
}

func oneLayer(content []byte) *block.Header {
	w := block.NewWriter(io.Discard, uuid.UUID{1}, block.WriterOptions{Size: int64(len(content))})
	if err := w.Write(0, content); err != nil {
		panic(err)
	}
	h, _, err := w.Finish(nil)
	if err != nil {
		panic(err)
	}
	return h
}

func BenchmarkHash(b *testing.B) {
	content := mixed(block.DefaultFrameSize)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		block.Sum(content)
	}
}

func BenchmarkReadAt(b *testing.B) {
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		h, source := layerFile(b, 64<<20, codec)
		for name, size := range map[string]int{"4K": 4 << 10, "1M": 1 << 20} {
			b.Run(codec.String()+"/sequential/"+name, func(b *testing.B) {
				r := block.NewReader("image", h, source)
				p := make([]byte, size)
				var at int64
				b.SetBytes(int64(size))
				for b.Loop() {
					if _, err := r.ReadAt(p, at); err != nil {
						b.Fatal(err)
					}
					at = (at + int64(size)) % h.Size
				}
			})
		}
		b.Run(codec.String()+"/random/4K", func(b *testing.B) {
			r := block.NewReader("image", h, source)
			p := make([]byte, 4<<10)
			rng := rand.New(rand.NewPCG(1, 2))
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if _, err := r.ReadAt(p, rng.Int64N(h.Size/4096)*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCopyTo(b *testing.B) {
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		b.Run(codec.String(), func(b *testing.B) {
			h, source := layerFile(b, 128<<20, codec)
			path := filepath.Join(b.TempDir(), "copy")
			b.SetBytes(h.Size)
			for b.Loop() {
				f, err := os.Create(path)
				if err != nil {
					b.Fatal(err)
				}
				if err := block.NewReader("image", h, source).CopyTo(context.Background(), f, nil); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				f.Close()
				os.Remove(path)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	h, source := layerFile(b, 128<<20, block.Plain)
	b.SetBytes(h.Size)
	for b.Loop() {
		if err := block.NewReader("image", h, source).Verify(context.Background(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// What a pause with 8 MiB of news costs: "write" is what the stopped machine
// waits for, the whole includes Finish.
func BenchmarkWriter(b *testing.B) {
	content := mixed(8 << 20)
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		b.Run(codec.String(), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "layer"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.SetBytes(int64(len(content)))
			var writing time.Duration
			for b.Loop() {
				if _, err := f.Seek(0, io.SeekStart); err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				w := block.NewWriter(f, uuid.UUID{1}, block.WriterOptions{Size: int64(len(content)), Codec: codec})
				if err := w.Write(0, content); err != nil {
					b.Fatal(err)
				}
				writing += time.Since(start)
				if _, _, err := w.Finish(nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(writing.Microseconds())/float64(b.N)/1000, "write-ms")
		})
	}
}

func BenchmarkIsZero(b *testing.B) {
	p := make([]byte, 8<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		for at := 0; at < len(p); at += 4096 {
			if !block.IsZero(p[at : at+4096]) {
				b.Fatal("not zero")
			}
		}
	}
}

func BenchmarkSetAdd(b *testing.B) {
	for b.Loop() {
		var s block.Set
		for at := int64(0); at < 1<<19; at += 5 {
			s.Add(at, 3)
		}
	}
}
