package firecracker

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// bigMemory reaches beyond the hole that x86 machines have under 4 GiB, so that it is in two pieces, and in sum above it.
const bigMemory = 5 << 30

// counterAt is where the guest counts.
const counterAt = 4 << 20

// TestBigMemory takes a machine with memory in two pieces through its life: what is in either piece is found, and stays, whether memory is Firecracker's own, a file's,
// or served.
func TestBigMemory(t *testing.T) {
	e := New(Programs{Binary: realBinary(t)}, nil)
	c := config(t)
	c.MemoryBytes = bigMemory
	m := start(t, e, c)
	waitDots(t, m, 2)
	state, memory := frozenBig(t, m, nil)
	last := bigCount(t, memory)
	m.Close()
	// What a guest that used that much would have there: at the end of the first piece, the beginning of the second, and its end.
	marks := map[int64]string{lowMemory - 4096: "below the hole", lowMemory: "above the hole", bigMemory - 4096: "the last page"}
	for at, text := range marks {
		if _, err := memory.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	for round, served := range []bool{false, true, false} {
		c := thawed(t, state, memory)
		c.MemoryBytes = bigMemory
		if served {
			needServing(t)
			c.Memory, c.Uffd = nil, serveMemory(t, memory).path
		}
		m := start(t, e, c)
		waitDots(t, m, 2)
		if !served { // then the pages are Firecracker's to tell, and those it has not touched are the server's
			for at, text := range marks {
				p := make([]byte, len(text))
				if err := m.ReadMemory(p, at); err != nil || string(p) != text {
					t.Errorf("round %d: at %#x there is %q (%v), want %q", round, at, p, err, text)
				}
			}
		}
		state, memory = frozenBig(t, m, memory)
		now := bigCount(t, memory)
		if now <= last || now > last+1<<31 {
			t.Fatalf("round %d: the counter went from %d to %d", round, last, now)
		}
		last = now
		m.Close()
	}
	for at, text := range marks {
		p := make([]byte, len(text))
		if _, err := memory.ReadAt(p, at); err != nil || string(p) != text {
			t.Errorf("at %#x there is %q in the end (%v), want %q", at, p, err, text)
		}
	}
}

// frozenBig is vmmtest.Freeze for memory that is too big to be compared page by page. base is what it was at the start; nil: zeros.
func frozenBig(t *testing.T, m *Machine, base *os.File) (state []byte, memory *os.File) {
	t.Helper()
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	state, err := m.SaveState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dirty, err := m.Dirty(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !dirty.Contains(counterAt/4096) || dirty.Len() > 1024 {
		t.Errorf("%d pages are dirty, for a guest that writes to a handful; the counter's is: %v", dirty.Len(), dirty.Contains(counterAt/4096))
	}
	memory, err = os.OpenFile(filepath.Join(t.TempDir(), "memory"), os.O_RDWR|os.O_CREATE, 0o666)
	if err == nil {
		t.Cleanup(func() { memory.Close() })
		err = errors.Join(memory.Truncate(bigMemory), memory.Chmod(0o666))
	}
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, 4096)
	put := func(read func(p []byte, off int64) error, at int64) {
		t.Helper()
		err := read(page, at)
		if err == nil {
			_, err = memory.WriteAt(page, at)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if base != nil {
		copySparse(t, base, func(at int64) {
			put(func(p []byte, off int64) error { _, err := base.ReadAt(p, off); return err }, at)
		})
	}
	for offset, length := range dirty.Ranges() {
		for n := offset; n < offset+length; n++ {
			put(m.ReadMemory, n*4096)
		}
	}
	return state, memory
}

// copySparse calls f for each page of a file that is not a hole.
func copySparse(t *testing.T, file *os.File, f func(at int64)) {
	t.Helper()
	sparse := &tracked{sink: file}
	err := sparse.extents(0, bigMemory, func(from, to int64) {
		for at := from / 4096 * 4096; at < to; at += 4096 {
			f(at)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func bigCount(t *testing.T, memory *os.File) uint32 {
	t.Helper()
	var p [4]byte
	if _, err := memory.ReadAt(p[:], counterAt); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(p[:])
}
