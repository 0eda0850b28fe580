package expose_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

// oneLayer is a block.Source.
type oneLayer map[uuid.UUID][]byte

func (s oneLayer) Layer(_ context.Context, id uuid.UUID) (io.ReaderAt, error) {
	data, ok := s[id]
	if !ok {
		return nil, os.ErrNotExist
	}
	return bytes.NewReader(data), nil
}

// layer makes a layer of base from what f writes, and returns the image that it makes with it.
func layer(t testing.TB, source oneLayer, base *block.Header, size int64, f func(w *block.Writer) error) *block.Header {
	t.Helper()
	var stored bytes.Buffer
	id := uuid.New()
	w := block.NewWriter(&stored, id, block.WriterOptions{Size: size})
	if err := f(w); err != nil {
		t.Fatal(err)
	}
	h, _, err := w.Finish(base)
	if err != nil {
		t.Fatal(err)
	}
	source[id] = stored.Bytes()
	return h
}

// TestSnapshotsOfARunningDisk goes the whole way of a disk: from a snapshot through an overlay to the next snapshot, while a machine goes on writing.
func TestSnapshotsOfARunningDisk(t *testing.T) {
	const size = 2 << 20
	source := oneLayer{}
	content := exposetest.Random(1, size)
	header := layer(t, source, nil, size, func(w *block.Writer) error { return w.Write(0, content) })
	read := func() *block.Reader {
		r := block.NewReader("rootfs.ext4", header, source)
		t.Cleanup(func() { r.Close() })
		return r
	}
	top, err := expose.NewOverlay(read(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	disk := expose.NewSwitch(top)
	defer func() { top.Close() }()
	client := mustDial(t, serve(t, expose.NewNBDServer(disk, expose.NBDOptions{})), "", true)
	defer client.Close()
	for generation := range 4 {
		for i := range 5 {
			p := exposetest.Random(uint64(10*generation+i), 5000)
			at := (generation*7 + i*31) * 9973 % (size - len(p))
			if _, err := client.WriteAt(p, int64(at)); err != nil {
				t.Fatal(err)
			}
			copy(content[at:], p)
		}
		hole := int64(generation+3) * 16 * expose.BlockSize
		if err := client.Trim(hole, 8*expose.BlockSize); err != nil {
			t.Fatal(err)
		}
		clear(content[hole : hole+8*expose.BlockSize])

		frozen := top
		if err := disk.Replace(func(expose.Disk) (expose.Disk, error) {
			top, err = frozen.Freeze()
			return top, err
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.WriteAt([]byte("meanwhile"), 12345); err != nil {
			t.Fatal(err)
		}
		header = layer(t, source, header, size, func(w *block.Writer) error { return copyDirty(frozen, w.Write) })
		published := read()
		if !bytes.Equal(readAll(t, published), content) {
			t.Fatalf("snapshot %d is not what the disk was", generation)
		}
		if err := top.Rebase(published); err != nil {
			t.Fatal(err)
		}
		if err := frozen.Close(); err != nil {
			t.Fatal(err)
		}
		copy(content[12345:], "meanwhile")
		if !bytes.Equal(readAll(t, client), content) {
			t.Fatalf("after snapshot %d the disk is not what was written", generation)
		}
		checkHoles(t, top, content)
		if length, isHole := client.Extent(hole, 8*expose.BlockSize); length != 8*expose.BlockSize || !isHole {
			t.Errorf("what was trimmed before snapshot %d is told as %d, %v", generation, length, isHole)
		}
	}
}

// checkHoles checks an overlay over a snapshot's reader, which knows of every block of zeros.
func checkHoles(t *testing.T, o *expose.Overlay, content []byte) {
	t.Helper()
	holes := 0
	for at := int64(0); at < o.Size(); {
		length, hole := o.Extent(at, o.Size()-at)
		for i := at; i < at+length; i += expose.BlockSize {
			if zero := block.IsZero(content[i : i+expose.BlockSize]); zero != hole {
				t.Fatalf("the block at %d: zero %v, told as a hole: %v", i, zero, hole)
			}
		}
		if hole {
			holes++
		}
		at += length
	}
	if holes == 0 {
		t.Error("no holes at all")
	}
}

func TestSwitchKeepsItsSize(t *testing.T) {
	first := exposetest.Overlay(t, make([]byte, 4096))
	s := expose.NewSwitch(first)
	for _, next := range []func(expose.Disk) (expose.Disk, error){
		func(expose.Disk) (expose.Disk, error) { return exposetest.Overlay(t, make([]byte, 8192)), nil },
		func(expose.Disk) (expose.Disk, error) { return nil, io.ErrClosedPipe },
	} {
		if err := s.Replace(next); err == nil {
			t.Error("replaced")
		}
	}
	if err := s.Replace(func(present expose.Disk) (expose.Disk, error) {
		if present != first {
			t.Error("the first disk is gone")
		}
		return present, nil
	}); err != nil {
		t.Error(err)
	}
	if err := first.Rebase(bytes.NewReader(make([]byte, 1))); err == nil {
		t.Error("a base of another size is taken")
	}
}

// TestFreezeUnderWrites freezes a disk again and again while it is written: each write must be in one generation, whole, and in all later ones.
func TestFreezeUnderWrites(t *testing.T) {
	const writers, slots, slot = 4, 50, 6000 // bytes; neither whole blocks nor alone in theirs
	dir := t.TempDir()
	top, err := expose.NewOverlay(bytes.NewReader(make([]byte, writers*slots*slot)), dir)
	if err != nil {
		t.Fatal(err)
	}
	disk := expose.NewSwitch(top)
	generations := []*expose.Overlay{top}
	defer func() {
		for _, o := range generations {
			o.Close()
		}
	}()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for s := range slots {
				at := int64((s*writers + w) * slot)
				if _, err := disk.WriteAt(bytes.Repeat([]byte{byte(s + 1)}, slot), at); err != nil {
					t.Errorf("writer %d: %v", w, err)
				}
			}
		})
	}
	for range 20 {
		if err := disk.Replace(func(expose.Disk) (expose.Disk, error) {
			next, err := generations[len(generations)-1].Freeze()
			if err == nil {
				generations = append(generations, next)
			}
			return next, err
		}); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	all.Wait()
	seen := make([]bool, writers*slots)
	for g, o := range generations {
		content := readAll(t, o)
		for i := range seen {
			want := byte(0)
			if content[i*slot] != 0 || seen[i] {
				seen[i], want = true, byte(i/writers+1)
			}
			if !bytes.Equal(content[i*slot:(i+1)*slot], bytes.Repeat([]byte{want}, slot)) {
				t.Fatalf("write %d is torn or lost in generation %d", i, g)
			}
		}
	}
	if slices.Contains(seen, false) {
		t.Error("a write is lost")
	}
}

// TestCorruptFrame damages a snapshot's layer below a served disk: the guest must get an error, the owner the frame's name.
func TestCorruptFrame(t *testing.T) {
	const size = 1 << 20
	source := oneLayer{}
	header := layer(t, source, nil, size, func(w *block.Writer) error { return w.Write(0, bytes.Repeat([]byte("data"), size/4)) })
	stored := source[header.Layers[0].ID]
	stored[3*header.FrameSize+100] ^= 1
	reader := block.NewReader("rootfs.ext4 of a snapshot", header, source)
	defer reader.Close()
	o, err := expose.NewOverlay(reader, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	told := make(chan *expose.Fault, 10)
	server := expose.NewNBDServer(o, expose.NBDOptions{Faulted: func(f *expose.Fault) { told <- f }})
	client := mustDial(t, serve(t, server), "", true)
	defer client.Close()

	if _, err := client.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("reading a good frame: %v", err)
	}
	bad := 3*header.FrameSize + 8192
	if _, err := client.ReadAt(make([]byte, 4096), bad); !errors.Is(err, unix.EIO) {
		t.Errorf("reading a bad frame: %v", err)
	}
	if _, err := client.WriteAt([]byte{1}, bad); !errors.Is(err, unix.EIO) {
		t.Errorf("changing part of a block in a bad frame: %v", err)
	}
	for _, op := range []string{"read", "write"} {
		fault := <-told
		var corrupt *block.CorruptError
		if fault.Op != op || fault.Offset != bad || !errors.As(fault, &corrupt) || corrupt.Frame != 3 {
			t.Errorf("the owner is told %v", fault)
		}
	}
	if f := server.Fault(); f == nil || f.Op != "read" {
		t.Errorf("the first fault is %v", f)
	}
	if _, err := client.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("reading a good frame after all that: %v", err)
	}
}
