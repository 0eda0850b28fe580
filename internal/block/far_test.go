package block

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/uuid"
)

// mapCache is a cache in memory, which tests may damage.
type mapCache struct {
	mu     sync.Mutex
	frames map[Digest][]byte
}

func (c *mapCache) Get(d Digest, p []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, ok := c.frames[d]
	return ok && len(data) == len(p) && copy(p, data) == len(p)
}

func (c *mapCache) Put(d Digest, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames[d] = bytes.Clone(p)
}

// farSource counts reads, and spoils those that bad says.
type farSource struct {
	data []byte
	mu   sync.Mutex
	n    int
	size int64
	bad  func(n int) bool
}

func (f *farSource) Layer(context.Context, uuid.UUID) (io.ReaderAt, error) { return f, nil }

func (f *farSource) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	f.n++
	f.size += int64(len(p))
	spoil := f.bad != nil && f.bad(f.n)
	f.mu.Unlock()
	n := copy(p, f.data[off:])
	if spoil {
		p[n/2] ^= 1
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

type memFile struct{ data []byte }

func (m *memFile) WriteAt(p []byte, off int64) (int, error) { return copy(m.data[off:], p), nil }

func far(t *testing.T, codec Codec) (*Header, *farSource, []byte) {
	t.Helper()
	const size = 3<<20 + 5*DefaultBlockSize
	plain := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range plain {
		if plain[i] = byte(r.IntN(3)); i/DefaultBlockSize%50 == 7 {
			plain[i] = 0
		}
	}
	var stored bytes.Buffer
	w := NewWriter(&stored, uuid.New(), WriterOptions{Size: size, Codec: codec})
	defer w.Abort()
	if err := w.Write(0, plain); err != nil {
		t.Fatal(err)
	}
	h, _, err := w.Finish(nil)
	if err != nil {
		t.Fatal(err)
	}
	return h, &farSource{data: stored.Bytes()}, plain
}

func TestFar(t *testing.T) {
	for _, codec := range []Codec{Plain, Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			h, source, plain := far(t, codec)
			cache := &mapCache{frames: map[Digest][]byte{}}
			copyAll := func() {
				t.Helper()
				r := NewReader("test", h, source, WithCache(cache))
				defer r.Close()
				got := &memFile{make([]byte, len(plain))}
				if err := r.CopyTo(t.Context(), got, nil); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.data, plain) {
					t.Fatal("other bytes came")
				}
			}
			frames := len(h.Layers[0].Frames)
			copyAll()
			if codec == Plain && source.n > frames/8 {
				t.Errorf("%d reads for %d frames", source.n, frames)
			}
			if source.size != int64(len(source.data)) {
				t.Errorf("%d bytes were read, %d are stored", source.size, len(source.data))
			}
			source.n = 0
			copyAll()
			if source.n > 0 {
				t.Errorf("%d reads although all was cached", source.n)
			}
			// Damage in the cache heals.
			damaged := 0
			for d, p := range cache.frames {
				if damaged++; damaged%3 == 0 {
					p[len(p)/3] ^= 1
				}
				if damaged%5 == 0 {
					delete(cache.frames, d)
				}
			}
			copyAll()
			source.n = 0
			copyAll()
			if source.n > 0 {
				t.Errorf("%d reads: the cache did not heal", source.n)
			}
			// Reads of a part.
			r := NewReader("test", h, source, WithCache(cache))
			defer r.Close()
			p := make([]byte, 100_000)
			if _, err := r.ReadAt(p, 12345); err != nil || !bytes.Equal(p, plain[12345:112345]) {
				t.Errorf("a part: %v", err)
			}
		})
	}
}

func TestFarSpoilt(t *testing.T) {
	for _, codec := range []Codec{Plain, Zstd} {
		h, source, plain := far(t, codec)
		source.bad = func(n int) bool { return n%2 == 1 } // each time the second try is good
		r := NewReader("test", h, source, WithCache(&mapCache{frames: map[Digest][]byte{}}))
		for off := int64(0); off < int64(len(plain)); off += DefaultFrameSize {
			p := make([]byte, min(DefaultFrameSize, int64(len(plain))-off))
			if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, plain[off:off+int64(len(p))]) {
				t.Fatalf("%s at %d: %v", codec, off, err)
			}
		}
		r.Close()
		cache := &mapCache{frames: map[Digest][]byte{}}
		source.bad = func(int) bool { return true }
		r = NewReader("test", h, source, WithCache(cache))
		defer r.Close()
		var damage *CorruptError
		if err := r.CopyTo(t.Context(), &memFile{make([]byte, len(plain))}, nil); !errors.As(err, &damage) {
			t.Errorf("%s: got %v", codec, err)
		}
		for d, p := range cache.frames {
			if Sum(p) != d {
				t.Error("wrong bytes were cached")
			}
		}
	}
}
