package expose_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

func readAll(t interface{ Fatalf(string, ...any) }, disk expose.Base) []byte {
	p := make([]byte, disk.Size())
	if n, err := disk.ReadAt(p, 0); n != len(p) {
		t.Fatalf("reading everything: %d, %v", n, err)
	}
	return p
}

// TestGenerations does arbitrary things to a disk that is frozen now and then, and goes back to look at every generation.
func TestGenerations(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{0, 1, 4096, 30*4096 - 1, 64 * 4096, 70*4096 + 512}).Draw(t, "size")
		content := exposetest.Random(rapid.Uint64Range(0, 99).Draw(t, "content"), size)
		top, err := expose.NewOverlay(bytes.NewReader(slices.Clone(content)), dir)
		if err != nil {
			t.Fatal(err)
		}
		var frozen []*expose.Overlay
		var contents [][]byte
		defer func() {
			for _, o := range append(frozen, top) {
				o.Close()
			}
		}()
		for range rapid.IntRange(0, 5).Draw(t, "generations") {
			before := slices.Clone(content)
			exposetest.Mutate(t, top, content)
			checkDirty(t, top, before, content)
			next, err := top.Freeze()
			if err != nil {
				t.Fatal(err)
			}
			frozen, contents, top = append(frozen, top), append(contents, slices.Clone(content)), next
			if rapid.Bool().Draw(t, "rebase") {
				if err := top.Rebase(bytes.NewReader(slices.Clone(content))); err != nil {
					t.Fatal(err)
				}
			}
			if n := top.Dirty().Len(); n != 0 {
				t.Fatalf("%d blocks of a fresh overlay are dirty", n)
			}
		}
		exposetest.Mutate(t, top, content)
		for i, o := range frozen {
			if !bytes.Equal(readAll(t, o), contents[i]) {
				t.Fatalf("generation %d has changed", i)
			}
		}
	})
	exposetest.HasNoOverlayFiles(t, dir)
}

// checkDirty checks that all that differs is dirty, and that the dirty blocks alone make the one content of the other.
func checkDirty(t *rapid.T, o *expose.Overlay, before, after []byte) {
	dirty := o.Dirty()
	for at := 0; at < len(before); at += expose.BlockSize {
		end := min(at+expose.BlockSize, len(before))
		if !dirty.Contains(int64(at/expose.BlockSize)) && !bytes.Equal(before[at:end], after[at:end]) {
			t.Fatalf("the block at %d has changed but is not dirty", at)
		}
	}
	content := slices.Clone(before)
	if err := copyDirty(o, func(offset int64, p []byte) error {
		copy(content[offset:], p)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content, after) {
		t.Fatal("the changes do not make the new content from the old")
	}
}

// copyDirty gives write all that is dirty, in ascending order.
func copyDirty(o *expose.Overlay, write func(offset int64, p []byte) error) error {
	for first, n := range o.Dirty().Ranges() {
		offset := first * expose.BlockSize
		p := make([]byte, min(n*expose.BlockSize, o.Size()-offset))
		if n, err := o.ReadAt(p, offset); n != len(p) {
			return err
		}
		if err := write(offset, p); err != nil {
			return err
		}
	}
	return nil
}

// TestHolesOfTheBaseStayClean trims a disk most of which is holes already.
func TestHolesOfTheBaseStayClean(t *testing.T) {
	below := exposetest.Overlay(t, exposetest.Random(1, 16<<20))
	if err := below.Trim(1<<20, 14<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := below.WriteAt([]byte{1}, 8<<20+5); err != nil {
		t.Fatal(err)
	}
	o, err := below.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if _, err := o.WriteAt([]byte{1}, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := o.Trim(0, 16<<20); err != nil {
		t.Fatal(err)
	}
	if !block.IsZero(readAll(t, o)) {
		t.Error("not all zeros after a trim")
	}
	// The first and the last MiB, the block changed below, and the one changed above.
	if n := o.Dirty().Len(); n != 2<<20/expose.BlockSize+2 {
		t.Errorf("%d dirty blocks", n)
	}
	if err := o.Zero(2<<20, 1<<20, false); err != nil {
		t.Fatal(err)
	}
	if n := o.Dirty().Len(); n != 3<<20/expose.BlockSize+2 {
		t.Errorf("%d dirty blocks after zeros that may not be a hole", n)
	}
}

// odd is a base of zeros, in turn a hole and not, with borders inside blocks.
type odd struct{ lying }

func (odd) Extent(offset, limit int64) (int64, bool) {
	const piece = 3 * expose.BlockSize / 2
	return min(limit, piece-offset%piece), offset/piece%2 == 0
}

func TestHolesThatEndInsideBlocks(t *testing.T) {
	o, err := expose.NewOverlay(odd{lying{zeros{}, 30 * expose.BlockSize}}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.Zero(0, o.Size(), true); err != nil {
		t.Fatal(err)
	}
	// Of three blocks the first is a hole; the second and the third are not, or not wholly.
	for n := range int64(30) {
		if dirty := o.Dirty().Contains(n); dirty != (n%3 != 0) {
			t.Errorf("block %d is dirty: %v", n, dirty)
		}
	}
	if length, hole := o.Extent(0, o.Size()); length != o.Size() || !hole {
		t.Errorf("a hole of %d: %v", length, hole)
	}
}

func TestFrozenOverlayRefusesChanges(t *testing.T) {
	content := exposetest.Random(1, 1<<20)
	o := exposetest.Overlay(t, content)
	next, err := o.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	_, err = o.WriteAt([]byte{1}, 0)
	for op, err := range map[string]error{"write": err, "zero": o.Zero(0, 4096, true), "trim": o.Trim(0, 4096)} {
		if !errors.Is(err, expose.ErrFrozen) {
			t.Errorf("%s: %v, want ErrFrozen", op, err)
		}
	}
	if !bytes.Equal(readAll(t, o), content) {
		t.Error("a frozen overlay has changed")
	}
}

func TestFreezeThatFailsLeavesItWritable(t *testing.T) {
	dir := t.TempDir() + "/gone"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	o, err := expose.NewOverlay(bytes.NewReader(make([]byte, 8192)), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Freeze(); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("freezing: %v", err)
	}
	if _, err := o.WriteAt([]byte{1}, 0); err != nil {
		t.Errorf("writing: %v", err)
	}
}

func TestClosedOverlay(t *testing.T) {
	o, err := expose.NewOverlay(bytes.NewReader(make([]byte, 8192)), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(o.Close(), o.Close()); err != nil {
		t.Fatal(err)
	}
	_, readErr := o.ReadAt(make([]byte, 1), 0)
	_, writeErr := o.WriteAt(make([]byte, 1), 0)
	_, freezeErr := o.Freeze()
	for op, err := range map[string]error{"read": readErr, "write": writeErr, "freeze": freezeErr, "zero": o.Zero(0, 1, true), "flush": o.Flush(t.Context())} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// lying is a base with less in it than it says.
type lying struct {
	io.ReaderAt
	size int64
}

func (l lying) Size() int64 { return l.size }

func TestBaseThatFails(t *testing.T) {
	o, err := expose.NewOverlay(lying{bytes.NewReader(make([]byte, 4096)), 8192}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if n, err := o.ReadAt(make([]byte, 8192), 0); n == 8192 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reading more than there is: %d, %v", n, err)
	}
	// What would have to be completed from bytes that can't be read must not be written at all.
	if _, err := o.WriteAt([]byte{1}, 4096); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("changing part of an unreadable block: %v", err)
	}
	if n := o.Dirty().Len(); n != 0 {
		t.Errorf("%d blocks are dirty", n)
	}
	if _, err := o.WriteAt(make([]byte, 4096), 4096); err != nil {
		t.Errorf("replacing an unreadable block: %v", err)
	}
	if _, err := o.ReadAt(make([]byte, 8192), 0); err != nil {
		t.Errorf("reading what replaces it: %v", err)
	}
	if _, err := expose.NewOverlay(lying{size: -1}, t.TempDir()); err == nil {
		t.Error("a base of negative size is taken")
	}
}

// TestDiskFull has an overlay on a file system of 1 MiB.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	content := exposetest.Random(1, 16<<20)
	o, err := expose.NewOverlay(bytes.NewReader(content), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() }) // before the unmount, which needs it

	data := bytes.Repeat([]byte{7}, 64<<10)
	full := int64(-1)
	for at := int64(0); at < o.Size(); at += int64(len(data)) {
		if _, err := o.WriteAt(data, at); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("writing to a full disk: %v", err)
			}
			full = at
			break
		}
		copy(content[at:], data)
	}
	if full < 512<<10 {
		t.Fatalf("full at %d", full)
	}
	if _, err := o.WriteAt([]byte{1}, 8<<20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("changing part of a block on a full disk: %v", err)
	}
	if err := o.Zero(8<<20, 1<<20, false); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("reserving zeros on a full disk: %v", err)
	}
	if got := readAll(t, o); !bytes.Equal(got, content) {
		t.Error("a failed write has changed the disk")
	}
	// A guest that discards gets room again, and one that only zeroes needs none.
	if err := o.Zero(10<<20, 1<<20, true); err != nil {
		t.Error(err)
	}
	if err := o.Trim(0, full); err != nil {
		t.Fatal(err)
	}
	if _, err := o.WriteAt(data, 8<<20); err != nil {
		t.Errorf("writing after a trim: %v", err)
	}
}

func TestLargeAndSparse(t *testing.T) {
	const tib = int64(1) << 40
	o, err := expose.NewOverlay(lying{zeros{}, tib}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if _, err := o.WriteAt([]byte("end"), tib-3); err != nil {
		t.Fatal(err)
	}
	if err := o.Trim(tib/2, 8<<30); err != nil {
		t.Fatal(err)
	}
	if n := o.Dirty().Len(); n != 1+8<<30/expose.BlockSize {
		t.Errorf("%d dirty blocks", n)
	}
	if length, hole := o.Extent(tib/2, tib/2); length != 8<<30 || !hole {
		t.Errorf("an extent of %d, %v", length, hole)
	}
}

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}
