package pager

import (
	"bytes"
	"context"
	"errors"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sporevm/spore/internal/block"
)

// Many take frames, more than there is room for, of which some can't be read at
// times. What they hold is what they asked for and does not change, and a frame that
// somebody holds is not read again.
func TestFrames(t *testing.T) {
	const size, kinds = 4 << 10, 2 * minSlots
	f, err := newFrames(1, size)
	if err != nil {
		t.Fatal(err)
	}
	var contents [kinds][]byte
	var digests [kinds]block.Digest
	var held [kinds]atomic.Int64
	for i := range contents {
		contents[i] = bytes.Repeat([]byte{byte(i), byte(i >> 8), 7}, size)[:size-i%2]
		digests[i] = block.Sum(contents[i])
	}
	bad := errors.New("bad")
	var group sync.WaitGroup
	for g := range 16 {
		group.Go(func() {
			random := rand.New(rand.NewSource(int64(g)))
			for range 3000 {
				i, fails := random.Intn(kinds), random.Intn(10) == 0
				s, p := f.get(digests[i], len(contents[i]))
				if s == nil {
					var err error
					s, p, err = f.load(t.Context(), digests[i], len(contents[i]), func(p []byte) error {
						if held[i].Load() > 0 {
							t.Errorf("frame %d is read while it is there", i)
						}
						if fails {
							return bad
						}
						copy(p, contents[i])
						return nil
					})
					if errors.Is(err, bad) {
						continue
					} else if err != nil {
						t.Error(err)
						return
					}
				}
				held[i].Add(1)
				if !bytes.Equal(p, contents[i]) {
					t.Errorf("frame %d holds something else", i)
				}
				held[i].Add(-1)
				f.release(s)
			}
		})
	}
	group.Wait()
	if f.used != minSlots || len(f.known) > minSlots {
		t.Errorf("%d slots are used for %d frames, there are %d", f.used, len(f.known), minSlots)
	}
	for i := range f.slots {
		if f.slots[i].pins != 0 {
			t.Errorf("slot %d is held %d times", i, f.slots[i].pins)
		}
	}
}

// Who waits for room gives up with its context.
func TestFramesFull(t *testing.T) {
	f, err := newFrames(1, 4<<10)
	if err != nil {
		t.Fatal(err)
	}
	fill := func([]byte) error { return nil }
	var slots []*slot
	for i := range minSlots {
		s, _, err := f.load(t.Context(), block.Digest{1, byte(i)}, 4<<10, fill)
		if err != nil {
			t.Fatal(err)
		}
		slots = append(slots, s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, _, err := f.load(ctx, block.Digest{2}, 4<<10, fill)
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go func() {
		_, _, err := f.load(t.Context(), block.Digest{3}, 4<<10, fill)
		result <- err
	}()
	f.release(slots[0])
	if err := <-result; err != nil {
		t.Error(err)
	}
}
