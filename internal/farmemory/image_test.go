package farmemory

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/block/framecache"
	"github.com/sporevm/spore/internal/snapshot"
)

// source is where the memory's only layer is, far away: reads are counted, fail, and wait.
type source struct {
	data []byte

	mu    sync.Mutex
	reads int
	bytes int64
	fail  func(off int64, n int) error
}

func (s *source) Layer(context.Context, uuid.UUID) (io.ReaderAt, error) { return s, nil }

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	s.reads++
	s.bytes += int64(len(p))
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		if err := fail(off, len(p)); err != nil {
			return 0, err
		}
	}
	return copy(p, s.data[off:]), nil
}

const (
	imagePages = 1024
	framePages = block.DefaultFrameSize / pageSize
)

// memory makes a memory of which every seventh stretch of 24 pages is a hole.
func memory(t testing.TB) (*block.Header, *source, []byte) {
	t.Helper()
	content := make([]byte, imagePages*pageSize)
	r := rand.New(rand.NewPCG(3, 4))
	for page := range imagePages {
		if page/24%7 == 3 {
			continue
		}
		for i := range 64 {
			content[page*pageSize+i*61] = byte(r.Uint32() | 1)
		}
	}
	var stored bytes.Buffer
	w := block.NewWriter(&stored, uuid.New(), block.WriterOptions{Size: int64(len(content))})
	defer w.Abort()
	if err := w.Write(0, content); err != nil {
		t.Fatal(err)
	}
	h, _, err := w.Finish(nil)
	if err != nil {
		t.Fatal(err)
	}
	return h, &source{data: stored.Bytes()}, content
}

// kernel is what an image puts into the kernel's cache.
type kernel struct {
	mu    sync.Mutex
	pages map[int64][]byte
}

func (k *kernel) put(offset int64, p []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for at := 0; at < len(p); at += pageSize {
		k.pages[(offset+int64(at))/pageSize] = bytes.Clone(p[at : at+pageSize])
	}
	return nil
}

// check compares what is there with what should be, and returns how many pages there are.
func (k *kernel) check(t *testing.T, content []byte) int {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for page, p := range k.pages {
		if !bytes.Equal(p, content[page*pageSize:(page+1)*pageSize]) {
			t.Errorf("page %d has other bytes in the kernel", page)
		}
	}
	return len(k.pages)
}

func farImage(t testing.TB, h *block.Header, s *source, record bool) (*image, *kernel) {
	t.Helper()
	m := newImage(block.NewReader("memfile", h, s, block.WithCache(framecache.Open(t.TempDir(), 1<<30))), record)
	k := &kernel{pages: map[int64][]byte{}}
	m.put = k.put
	m.failed = func(err error) { t.Errorf("it has failed: %v", err) }
	return m, k
}

// TestImageOnDemand touches pages from several sides at once: all are right, every frame is read once, and what came along is in the kernel.
func TestImageOnDemand(t *testing.T) {
	h, s, content := memory(t)
	m, k := farImage(t, h, s, false)
	var all sync.WaitGroup
	for seed := range uint64(4) {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for range 300 {
				page := r.Int64N(imagePages / 2)
				p := make([]byte, pageSize)
				if _, err := m.ReadAt(p, page*pageSize); err != nil || !bytes.Equal(p, content[page*pageSize:(page+1)*pageSize]) {
					t.Errorf("page %d is wrong: %v", page, err)
				}
			}
		})
	}
	all.Wait()
	m.puts.Wait()
	if n := k.check(t, content); n < imagePages/3 || n > imagePages/2+framePages*2 {
		t.Errorf("%d pages are in the kernel", n)
	}
	if most := len(h.Layers[0].Frames)/2 + 2; s.reads > most {
		t.Errorf("%d reads for %d frames", s.reads, most)
	}
	// Across pages and to the end, which the kernel does not ask for.
	p := make([]byte, 3*pageSize)
	if n, err := m.ReadAt(p, int64(len(content))-5000); n != 5000 || !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], content[len(content)-5000:]) {
		t.Errorf("the end is %d bytes, %v", n, err)
	}
}

// TestImagePrefetch fetches a list ahead while its pages are touched: nothing is read twice, and neighbours come together.
func TestImagePrefetch(t *testing.T) {
	h, s, content := memory(t)
	m, k := farImage(t, h, s, false)
	var pages snapshot.Pages
	r := rand.New(rand.NewPCG(8, 8))
	for range 200 {
		pages.Add(r.Int64N(imagePages))
	}
	touch := func(page int64) {
		p := make([]byte, pageSize)
		if _, err := m.ReadAt(p, page*pageSize); err != nil || !bytes.Equal(p, content[page*pageSize:(page+1)*pageSize]) {
			t.Errorf("page %d is wrong: %v", page, err)
		}
	}
	for page := range pages.All() {
		touch(page)
		break
	}
	// From the first read on all is planned. Whoever comes before that reads frame by frame.
	planned := make(chan struct{})
	var once sync.Once
	s.mu.Lock()
	s.fail = func(int64, int) error {
		once.Do(func() { close(planned) })
		return nil
	}
	s.mu.Unlock()
	var all sync.WaitGroup
	all.Go(func() { m.prefetch(t.Context(), pages) })
	all.Go(func() {
		<-planned
		for page := range pages.All() {
			touch(page)
		}
	})
	all.Wait()
	m.puts.Wait()
	k.check(t, content)
	for page := range pages.All() {
		if k.pages[page] == nil {
			t.Errorf("page %d is not in the kernel", page)
		}
	}
	// The page that was touched before the list was known may have its frame come twice.
	if stored := int64(len(s.data)); s.bytes > stored+framePages*pageSize {
		t.Errorf("%d bytes were read, of %d", s.bytes, stored)
	}
	if frames := len(h.Layers[0].Frames); s.reads > frames/2 {
		t.Errorf("%d reads for %d frames", s.reads, frames)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	m.prefetch(ended, pages) // returns
}

// TestImageFaults has a part of the source fail: who touches it hears of it, others don't, and it can be had again later.
func TestImageFaults(t *testing.T) {
	h, s, content := memory(t)
	m, k := farImage(t, h, s, false)
	lost := errors.New("lost")
	bad := h.Layers[0].Frames[5]
	s.fail = func(off int64, n int) error {
		if off < bad.Offset+int64(bad.Length) && off+int64(n) > bad.Offset {
			return lost
		}
		return nil
	}
	var told []error
	m.failed = func(err error) { told = append(told, err) }
	var list snapshot.Pages
	for page := range int64(imagePages) {
		list.Add(page)
	}
	m.prefetch(t.Context(), list)
	if len(told) > 0 {
		t.Errorf("fetching ahead is fatal: %v", told)
	}
	p, failed := make([]byte, pageSize), 0
	for page := range int64(imagePages) {
		_, err := m.ReadAt(p, page*pageSize)
		frames, stored := m.fetcher.At(page * pageSize)
		switch isBad := stored && frames.First == 5; {
		case isBad && !errors.Is(err, lost):
			t.Errorf("page %d of the lost frame: %v", page, err)
		case isBad:
			failed++
		case err != nil || !bytes.Equal(p, content[page*pageSize:(page+1)*pageSize]):
			t.Errorf("page %d: %v", page, err)
		}
	}
	if failed != framePages || len(told) != failed {
		t.Errorf("%d pages failed, %d were told", failed, len(told))
	}
	s.mu.Lock()
	s.fail = nil
	s.mu.Unlock()
	for page := range int64(imagePages) {
		if _, err := m.ReadAt(p, page*pageSize); err != nil || !bytes.Equal(p, content[page*pageSize:(page+1)*pageSize]) {
			t.Errorf("page %d after all that: %v", page, err)
		}
	}
	m.puts.Wait()
	k.check(t, content)
}

// TestImageRecords keeps account of what is touched, in order, each page once, and puts nothing into the kernel.
func TestImageRecords(t *testing.T) {
	h, s, content := memory(t)
	m, k := farImage(t, h, s, true)
	p := make([]byte, pageSize)
	for _, page := range []int64{9, 10, 11, 500, 3, 10, 80, 9} {
		if _, err := m.ReadAt(p, page*pageSize); err != nil || !bytes.Equal(p, content[page*pageSize:(page+1)*pageSize]) {
			t.Errorf("page %d: %v", page, err)
		}
	}
	m.puts.Wait()
	want := snapshot.Pages{{First: 9, Count: 3}, {First: 500, Count: 1}, {First: 3, Count: 1}, {First: 80, Count: 1}}
	if got := m.pages(); len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] || got[3] != want[3] {
		t.Errorf("touched %v, want %v", got, want)
	}
	if n := k.check(t, content); n > 0 {
		t.Errorf("%d pages are in the kernel", n)
	}
}
