package bucket

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/klauspost/compress/zstd"
	"gocloud.dev/blob/memblob"
	"pgregory.net/rapid"
)

// kept returns stored bytes as an object of a bucket.
func kept(t interface{ Fatal(...any) }, stored []byte) *object {
	b := &Bucket{blobs: memblob.OpenBucket(nil), options: Options{Attempts: 1}.withDefaults()}
	if err := b.put(context.Background(), "o", stored, nil); err != nil {
		t.Fatal(err)
	}
	o := &object{bucket: b, key: "o", size: int64(len(stored))}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o
}

func TestSeekable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.IntRange(0, 3), rapid.IntRange(inputSize-2, inputSize+2), rapid.IntRange(0, 20*inputSize)).Draw(t, "size")
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		plain := make([]byte, size)
		for i := range plain {
			if random.IntN(8) > 0 && i > 0 {
				plain[i] = plain[i-1]
			} else {
				plain[i] = byte(random.Uint32())
			}
		}
		var stored bytes.Buffer
		if err := writeSeekable(t.Context(), &stored, bytes.NewReader(plain), int64(size)); err != nil {
			t.Fatal(err)
		}
		s, err := openSeekable(t.Context(), kept(t, stored.Bytes()), int64(stored.Len()), strconv.Itoa(size))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for range 10 {
			off := rapid.IntRange(0, size+10).Draw(t, "offset")
			p := make([]byte, rapid.IntRange(0, size+10).Draw(t, "length"))
			n, err := s.ReadAt(p, int64(off))
			want := plain[min(off, size):min(off+len(p), size)]
			if !bytes.Equal(p[:n], want) || (err == io.EOF) != (len(want) < len(p)) || err != nil && err != io.EOF {
				t.Fatalf("%d bytes at %d of %d: %d came, %v", len(p), off, size, n, err)
			}
		}
		// Any zstd decoder reads it.
		d, err := zstd.NewReader(&stored)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if got, err := io.ReadAll(d); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("zstd reads %d bytes of %d, %v", len(got), size, err)
		}
	})
}

func FuzzSeekable(f *testing.F) {
	var stored bytes.Buffer
	plain := bytes.Repeat([]byte("spore"), inputSize)
	if err := writeSeekable(context.Background(), &stored, bytes.NewReader(plain), int64(len(plain))); err != nil {
		f.Fatal(err)
	}
	f.Add(stored.Bytes(), strconv.Itoa(len(plain)))
	f.Add([]byte{}, "0")
	huge := binary.LittleEndian.AppendUint32(make([]byte, 20), 1<<31)
	f.Add(binary.LittleEndian.AppendUint32(append(huge, 0), seekableTail), "5")
	f.Fuzz(func(t *testing.T, stored []byte, size string) {
		o := kept(t, stored)
		s, err := openSeekable(t.Context(), o, int64(len(stored)), size)
		if err != nil {
			o.Close()
			return
		}
		defer s.Close()
		if s.Size() > int64(len(stored))*inputSize {
			t.Fatalf("%d bytes say that they are %d", len(stored), s.Size())
		}
		p := make([]byte, min(s.Size(), 1<<20))
		if n, err := s.ReadAt(p, 0); n < len(p) && err == nil {
			t.Fatalf("%d of %d bytes without an error", n, len(p))
		}
	})
}

// Bytes that do not expand any more are told from a store that can't be reached.
func TestSeekableIsDamaged(t *testing.T) {
	var stored bytes.Buffer
	plain := make([]byte, inputSize)
	for i := range plain {
		plain[i] = byte(i * i >> 7)
	}
	if err := writeSeekable(t.Context(), &stored, bytes.NewReader(plain), int64(len(plain))); err != nil {
		t.Fatal(err)
	}
	size := strconv.Itoa(len(plain))
	damaged := func(what string, err error) {
		t.Helper()
		var said interface{ Damaged() bool }
		if !errors.As(err, &said) || !said.Damaged() {
			t.Errorf("%s: %v", what, err)
		}
	}
	table := bytes.Clone(stored.Bytes())
	table[len(table)-1] ^= 1
	_, err := openSeekable(t.Context(), kept(t, table), int64(len(table)), size)
	damaged("a table", err)

	clear(stored.Bytes()[:stored.Len()/2])
	s, err := openSeekable(t.Context(), kept(t, stored.Bytes()), int64(stored.Len()), size)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.ReadAt(make([]byte, 1), 0)
	damaged("a frame", err)
}
