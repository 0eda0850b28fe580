package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// unpackable is what a source says whose own form of the bytes is damaged.
type unpackable bool

func (unpackable) Error() string   { return "it does not unpack" }
func (u unpackable) Damaged() bool { return bool(u) }

// broken is a source whose layers can't be opened, or read.
type broken struct {
	err    error
	opened bool
}

func (b broken) Layer(context.Context, uuid.UUID) (io.ReaderAt, error) {
	if !b.opened {
		return nil, fmt.Errorf("opening: %w", b.err)
	}
	return b, nil
}

func (b broken) ReadAt([]byte, int64) (int, error) { return 0, fmt.Errorf("reading: %w", b.err) }

// Damage that a source finds before it has any bytes to give is damage all the same.
func TestDamageInTheSource(t *testing.T) {
	content := bytes.Repeat([]byte("spore"), 1024)[:4*kib]
	h, _ := claimed(content[:100], content)
	for _, opened := range []bool{false, true} {
		for _, damaged := range []bool{false, true} {
			r := block.NewReader("memfile of x", h, broken{unpackable(damaged), opened})
			_, err := r.ReadAt(make([]byte, kib), 0)
			var corrupt *block.CorruptError
			if errors.As(err, &corrupt) != damaged || err == nil {
				t.Errorf("opened %v, damaged %v: %v", opened, damaged, err)
			}
			if damaged && (corrupt.Layer != h.ID || corrupt.Artifact != "memfile of x" || !errors.Is(err, unpackable(true))) {
				t.Errorf("the damage is told as %+v", corrupt)
			}
		}
	}
}
