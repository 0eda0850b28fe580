package exposetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/expose"
)

// size is of the suite's larger disk: more than two of an overlay's lock regions, and a last block of three sectors.
const size = 9<<20 + 3*512

// Run tests a way of exposing disks. openView exposes disk and returns it as its users see it; what it opens it closes at the end of the test.
func Run(t *testing.T, openView func(t *testing.T, disk expose.Disk) expose.Disk) {
	t.Run("Size", func(t *testing.T) {
		view := openView(t, Overlay(t, Random(1, size)))
		if got := view.Size(); got != size {
			t.Errorf("size %d, want %d", got, size)
		}
	})
	t.Run("ReadsTheBase", func(t *testing.T) {
		content := Random(2, size)
		view := openView(t, Overlay(t, content))
		for _, r := range [][2]int{{0, size}, {0, 4096}, {4096, 8192}, {511, 2}, {4095, 4098}, {size - 1, 1}, {size - 5000, 5000}, {4<<20 - 7, 14}, {17, 0}} {
			want(t, view, r[0], content[r[0]:r[0]+r[1]])
		}
	})
	t.Run("ReadsItsWrites", func(t *testing.T) { readsItsWrites(t, openView) })
	t.Run("PastTheEnd", func(t *testing.T) { pastTheEnd(t, openView) })
	t.Run("Model", func(t *testing.T) { model(t, openView) })
	t.Run("ConcurrentNeighbours", func(t *testing.T) { concurrentNeighbours(t, openView) })
	t.Run("Faults", func(t *testing.T) { faults(t, openView) })
	t.Run("Holes", func(t *testing.T) { holes(t, openView) })
}

func want(t *testing.T, view io.ReaderAt, offset int, content []byte) {
	t.Helper()
	got := make([]byte, len(content))
	if n, err := view.ReadAt(got, int64(offset)); n != len(got) {
		t.Fatalf("reading %d bytes at %d: %d, %v", len(got), offset, n, err)
	}
	if at := difference(got, content); at >= 0 {
		t.Fatalf("reading %d bytes at %d: byte %d is %#x, want %#x", len(got), offset, at, got[at], content[at])
	}
}

// difference returns where two slices of one length first differ, or -1.
func difference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func readsItsWrites(t *testing.T, openView func(*testing.T, expose.Disk) expose.Disk) {
	base := Random(3, size)
	content := slices.Clone(base)
	disk := Overlay(t, base)
	view := openView(t, disk)
	for i, r := range [][2]int{{0, 4096}, {4095, 2}, {8192, 1 << 20}, {4<<20 - 4096, 8192}, {4<<20 - 3, 6}, {6 << 20, 12345}, {size - 1, 1}, {size - 9000, 9000}, {100, 0}} {
		p := Random(uint64(100+i), r[1])
		if n, err := view.WriteAt(p, int64(r[0])); n != len(p) || err != nil {
			t.Fatalf("writing %d bytes at %d: %d, %v", len(p), r[0], n, err)
		}
		copy(content[r[0]:], p)
		want(t, view, max(0, r[0]-4096), content[max(0, r[0]-4096):min(size, r[0]+r[1]+4096)])
	}
	want(t, view, 0, content)
	if err := view.Flush(context.Background()); err != nil {
		t.Fatalf("flush: %v", err)
	}
	want(t, disk, 0, content) // it must have arrived below
	if at := difference(base, Random(3, size)); at >= 0 {
		t.Fatalf("the base has changed at %d", at)
	}
}

func pastTheEnd(t *testing.T, openView func(*testing.T, expose.Disk) expose.Disk) {
	content := Random(4, size)
	view := openView(t, Overlay(t, content))
	if n, err := view.ReadAt(make([]byte, 10), size); n != 0 || err == nil {
		t.Errorf("reading at the end: %d, %v", n, err)
	}
	for _, r := range [][2]int64{{size - 4, 8}, {size, 1}, {size + 4096, 4096}, {1 << 62, 4096}} {
		if n, err := view.WriteAt(make([]byte, r[1]), r[0]); n != 0 || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("writing %d bytes at %d: %d, %v, want 0 and ENOSPC", r[1], r[0], n, err)
		}
		if err := view.Zero(r[0], r[1], true); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("zeroing %d bytes at %d: %v, want ENOSPC", r[1], r[0], err)
		}
		if err := view.Trim(r[0], r[1]); err == nil {
			t.Errorf("trimming %d bytes at %d: no error", r[1], r[0])
		}
	}
	want(t, view, 0, content)
}

// model does arbitrary operations and compares with a plain slice of bytes.
func model(t *testing.T, openView func(*testing.T, expose.Disk) expose.Disk) {
	const size = 20*expose.BlockSize + 512
	view := openView(t, Overlay(t, Random(5, size)))
	rapid.Check(t, func(t *rapid.T) {
		content := Random(rapid.Uint64Range(0, 500).Draw(t, "content"), size)
		if _, err := view.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		Mutate(t, view, content)
	})
}

// Mutate does arbitrary operations on disk, and the same on content, and compares the two.
func Mutate(t *rapid.T, disk expose.Disk, content []byte) {
	Operations(t, disk, content)
	got := make([]byte, len(content))
	if n, err := disk.ReadAt(got, 0); n != len(got) {
		t.Fatalf("reading everything: %d, %v", n, err)
	}
	if at := difference(got, content); at >= 0 {
		t.Fatalf("byte %d is %#x, want %#x", at, got[at], content[at])
	}
}

// Operations does arbitrary operations on disk, and the same on content. What it reads on the way it compares.
func Operations(t *rapid.T, disk expose.Disk, content []byte) {
	for range rapid.IntRange(0, 12).Draw(t, "operations") {
		offset, length := drawRange(t, len(content))
		part := content[offset : offset+length]
		var err error
		op := rapid.SampledFrom([]string{"write", "write", "read", "zero", "zero for good", "trim", "flush"}).Draw(t, "op")
		switch op {
		case "write":
			copy(part, Random(rapid.Uint64Range(0, 500).Draw(t, "data"), length))
			_, err = disk.WriteAt(part, int64(offset))
		case "read":
			got := make([]byte, length)
			if _, err = disk.ReadAt(got, int64(offset)); err == io.EOF {
				err = nil
			}
			if at := difference(got, part); at >= 0 {
				t.Fatalf("reading %d bytes at %d: byte %d is %#x, want %#x", length, offset, at, got[at], part[at])
			}
		case "zero", "zero for good":
			clear(part)
			err = disk.Zero(int64(offset), int64(length), op == "zero")
		case "trim":
			err = disk.Trim(int64(offset), int64(length))
			clear(wholeBlocks(content, offset, length))
		case "flush":
			err = disk.Flush(context.Background())
		}
		if err != nil {
			t.Fatalf("%s of %d bytes at %d: %v", op, length, offset, err)
		}
	}
}

// drawRange prefers what lies along block borders.
func drawRange(t *rapid.T, size int) (offset, length int) {
	point := rapid.Custom(func(t *rapid.T) int {
		at := rapid.IntRange(0, size/expose.BlockSize).Draw(t, "block")*expose.BlockSize +
			rapid.SampledFrom([]int{0, 0, 0, 1, 512, -1, -512, 1000}).Draw(t, "off")
		return max(0, min(size, at))
	})
	a, b := point.Draw(t, "from"), point.Draw(t, "to")
	return min(a, b), max(a, b) - min(a, b)
}

// wholeBlocks is the part of a range that Trim must clear.
func wholeBlocks(content []byte, offset, length int) []byte {
	end := offset + length
	if end < len(content) {
		end -= end % expose.BlockSize
	}
	offset = (offset + expose.BlockSize - 1) / expose.BlockSize * expose.BlockSize
	if offset >= end {
		return nil
	}
	return content[offset:end]
}

// concurrentNeighbours has several writers at work in the same blocks, none in another's bytes.
func concurrentNeighbours(t *testing.T, openView func(*testing.T, expose.Disk) expose.Disk) {
	const blocks, writers = 64, 8
	const share = expose.BlockSize / writers
	base := Random(6, blocks*expose.BlockSize)
	view := openView(t, Overlay(t, base))
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for block := range blocks {
				at := block*expose.BlockSize + w*share
				p := bytes.Repeat([]byte{byte(w + 1)}, share)
				var err error
				switch {
				case w == 0 && block%2 == 0:
					err = view.Zero(int64(at), share, true)
				default:
					_, err = view.WriteAt(p, int64(at))
				}
				if err != nil {
					t.Errorf("writer %d in block %d: %v", w, block, err)
				}
				got := make([]byte, share)
				if _, err := view.ReadAt(got, int64(at)); err != nil && err != io.EOF {
					t.Errorf("writer %d reading block %d: %v", w, block, err)
				} else if got[0] != p[0] && got[0] != 0 {
					t.Errorf("writer %d reads %d in block %d", w, got[0], block)
				}
			}
		})
	}
	all.Wait()
	content := make([]byte, len(base))
	for at := range content {
		content[at] = byte(at%expose.BlockSize/share + 1)
		if content[at] == 1 && at/expose.BlockSize%2 == 0 {
			content[at] = 0
		}
	}
	want(t, view, 0, content)
}

// faults checks that what fails below fails above, alike, and that the rest goes on.
func faults(t *testing.T, openView func(*testing.T, expose.Disk) expose.Disk) {
	content := Random(7, size)
	disk := &Faulty{Disk: Overlay(t, content)}
	view := openView(t, disk)
	do := map[string]func() error{
		"read": func() error {
			_, err := view.ReadAt(make([]byte, 8192), 1<<20)
			return err
		},
		"write": func() error {
			_, err := view.WriteAt(make([]byte, 8192), 1<<20)
			return err
		},
		"zero":  func() error { return view.Zero(1<<20, 8192, true) },
		"trim":  func() error { return view.Trim(1<<20, 8192) },
		"flush": func() error { return view.Flush(context.Background()) },
	}
	for op, f := range do {
		for _, fault := range []unix.Errno{unix.EIO, unix.ENOSPC} {
			if op == "read" && fault == unix.ENOSPC {
				continue
			}
			disk.Fail(func(failing string, _, _ int64) error {
				if failing == op {
					return fault
				}
				return nil
			})
			if err := f(); !errors.Is(err, fault) {
				t.Errorf("%s over a disk that fails with %v: %v", op, fault, err)
			}
		}
	}
	disk.Fail(nil)
	want(t, view, 0, content)
}

// holes checks that holes are only told where zeros are read, and that a zeroed range is told as one.
func holes(t *testing.T, openView func(*testing.T, expose.Disk) expose.Disk) {
	content := Random(8, size)
	view := openView(t, Overlay(t, content))
	if _, err := view.WriteAt(Random(9, 1<<20), 1<<20+4096); err != nil {
		t.Fatal(err)
	}
	if err := view.Zero(1<<20, 2<<20, true); err != nil {
		t.Fatal(err)
	}
	if err := view.Trim(5<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	clear(content[1<<20 : 3<<20])
	clear(content[5<<20 : 6<<20])
	if _, err := view.WriteAt([]byte{1}, 2<<20); err != nil {
		t.Fatal(err)
	}
	content[2<<20] = 1
	hollow := make([]bool, size)
	for at := int64(0); at < size; {
		length, hole := view.Extent(at, size-at)
		if length < 1 || length > size-at {
			t.Fatalf("an extent of %d bytes at %d of %d", length, at, size)
		}
		if hole && slices.ContainsFunc(content[at:at+length], func(b byte) bool { return b != 0 }) {
			t.Errorf("the hole of %d bytes at %d holds data", length, at)
		}
		for i := at; i < at+length; i++ {
			hollow[i] = hole
		}
		at += length
	}
	for _, r := range [][2]int{{1 << 20, 2 << 20}, {2<<20 + expose.BlockSize, 3 << 20}, {5 << 20, 6 << 20}} {
		if slices.Contains(hollow[r[0]:r[1]], false) {
			t.Errorf("bytes from %d to %d were given up but are not told as a hole", r[0], r[1])
		}
	}
}
