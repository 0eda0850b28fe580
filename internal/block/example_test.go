package block_test

import (
	"bytes"
	"fmt"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// Two snapshots of one image: the second writes one block and hides another.
func Example() {
	const size = 1 << 20
	first, second := uuid.MustParse("11111111-1111-4111-8111-111111111111"), uuid.MustParse("22222222-2222-4222-8222-222222222222")
	layers := memory{} // a Source; in real life a store

	snapshot := func(id uuid.UUID, base *block.Header, write func(w *block.Writer) error) *block.Header {
		var stored bytes.Buffer
		w := block.NewWriter(&stored, id, block.WriterOptions{Size: size})
		defer w.Abort()
		if err := write(w); err != nil {
			panic(err)
		}
		h, stats, err := w.Finish(base)
		if err != nil {
			panic(err)
		}
		layers[id] = stored.Bytes()
		fmt.Printf("generation %d stores %d bytes\n", h.Generation, stats.Stored)
		return h
	}
	base := snapshot(first, nil, func(w *block.Writer) error {
		return w.Write(0, bytes.Repeat([]byte("a"), 3*block.DefaultBlockSize))
	})
	top := snapshot(second, base, func(w *block.Writer) error {
		if err := w.Write(0, bytes.Repeat([]byte("b"), block.DefaultBlockSize)); err != nil {
			return err
		}
		return w.Zero(2*block.DefaultBlockSize, block.DefaultBlockSize)
	})

	r := block.NewReader("memfile of snapshot "+second.String(), top, layers)
	defer r.Close()
	p := make([]byte, 3*block.DefaultBlockSize)
	if _, err := r.ReadAt(p, 0); err != nil {
		panic(err)
	}
	for at := 0; at < len(p); at += block.DefaultBlockSize {
		fmt.Printf("block at %5d holds %q\n", at, p[at])
	}
	// Output:
	// generation 0 stores 12288 bytes
	// generation 1 stores 4096 bytes
	// block at     0 holds 'b'
	// block at  4096 holds 'a'
	// block at  8192 holds '\x00'
}
