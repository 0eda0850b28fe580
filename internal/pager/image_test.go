package pager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

// faults are what goes wrong with a test image, from a file beside it.
type faults struct {
	OpenError   string
	FailAfter   int64 // frames that can be read before all reads fail; 0: no limit
	FailTimes   int64 // how often each read fails before it succeeds
	SlowMillis  int64
	Hang        bool // reads never return
	Descriptors int  // that the process may open beyond those that are open; 0: no limit
}

// testImage is a layered image in a directory, the pages of which a flat file has too.
type testImage struct {
	dir    string
	header *block.Header
	flat   []byte
}

func (i *testImage) expect() string { return filepath.Join(i.dir, "flat") }

func (i *testImage) setFaults(t *testing.T, f faults) {
	t.Helper()
	data, err := json.Marshal(f)
	if err == nil {
		err = os.WriteFile(filepath.Join(i.dir, "faults"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// newImage makes an image of two layers, with runs of pages of either and holes.
func newImage(t *testing.T, size int64, o block.WriterOptions) *testImage {
	t.Helper()
	i := &testImage{dir: t.TempDir(), flat: make([]byte, size)}
	random := rand.New(rand.NewSource(size))
	o.Size = size
	blockSize := max(o.BlockSize, block.DefaultBlockSize)
	layer := func(base *block.Header, share float64) *block.Header {
		id := uuid.New()
		f, err := os.Create(filepath.Join(i.dir, id.String()))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := block.NewWriter(f, id, o)
		defer w.Abort()
		for at := int64(0); at < size; {
			n := min(blockSize*(1+random.Int63n(40)), size-at)
			if random.Float64() < share {
				if base != nil && random.Intn(4) == 0 {
					clear(i.flat[at : at+n])
				} else {
					random.Read(i.flat[at : at+n])
				}
				if err := w.Write(at, i.flat[at:at+n]); err != nil {
					t.Fatal(err)
				}
			}
			at += n
		}
		h, _, err := w.Finish(base)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	i.header = layer(layer(nil, 0.7), 0.3)
	data, err := i.header.MarshalBinary()
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(i.dir, "header"), data, 0o600), os.WriteFile(i.expect(), i.flat, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// frames is how many frames an image's runs lie in.
func (i *testImage) frames() int64 {
	s := &source{h: i.header}
	seen := map[block.Digest]bool{}
	for _, p := range s.pieces(nil, Range{0, i.header.Size}) {
		if !p.isHole() {
			d, _ := s.frame(p)
			seen[d] = true
		}
	}
	return int64(len(seen))
}

// layerFiles is a block.Source.
type layerFiles string

func (d layerFiles) Layer(_ context.Context, id uuid.UUID) (io.ReaderAt, error) {
	return os.Open(filepath.Join(string(d), id.String()))
}

// faulty is an image with faults.
type faulty struct {
	*block.Reader
	faults
	dir   string
	reads atomic.Int64
	tried map[[2]int]*atomic.Int64
}

// openTestImage opens what newImage made; its id is the directory.
func openTestImage(_ context.Context, dir string) (Image, error) {
	var f faults
	data, err := os.ReadFile(filepath.Join(dir, "faults"))
	if err == nil {
		err = json.Unmarshal(data, &f)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil && f.OpenError != "" {
		err = errors.New(f.OpenError)
	}
	if err != nil {
		return nil, err
	}
	data, err = os.ReadFile(filepath.Join(dir, "header"))
	if err != nil {
		return nil, err
	}
	h, err := block.DecodeHeader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	i := &faulty{Reader: block.NewReader("memfile of the test", h, layerFiles(dir)), faults: f, dir: dir, tried: map[[2]int]*atomic.Int64{}}
	for l := range h.Layers {
		for n := range h.Layers[l].Frames {
			i.tried[[2]int{l, n}] = new(atomic.Int64)
		}
	}
	if f.Descriptors > 0 {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return nil, err
		}
		limit := uint64(len(open) - 1 + f.Descriptors)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return nil, err
		}
	}
	return i, nil
}

func (i *faulty) ReadFrame(ctx context.Context, layer, frame int, p []byte) error {
	if i.Hang {
		select {} // and does not heed ctx
	}
	time.Sleep(time.Duration(i.SlowMillis) * time.Millisecond)
	if i.tried[[2]int{layer, frame}].Add(1) <= i.FailTimes {
		return errors.New("the line is bad")
	}
	if n := i.reads.Add(1); i.FailAfter > 0 && n > i.FailAfter {
		return errors.New("the disk is on fire")
	}
	return i.Reader.ReadFrame(ctx, layer, frame, p)
}
