package farmemory

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

const (
	pageSize = block.DefaultBlockSize
	// window is how much around a page that is all zeros is handed over with it, as far as that is zeros too.
	window = 64 << 10
	// fetchers is how many reads ahead of what is touched are under way at once.
	fetchers = 16
)

// image is the memory as the server of its file reads it.
//
// Whoever touches a page waits for the frame that it is in, and no longer: the rest of the frame, or of what was read together with it, is put into
// the kernel's cache afterwards. It can't be before, because the kernel keeps the page that is waited for locked.
type image struct {
	reader  *block.Reader
	fetcher *block.Fetcher
	put     func(offset int64, p []byte) error // into the kernel's cache
	failed  func(error)                        // is told of what can't be read before the one who touched it
	log     *slog.Logger
	record  bool

	mu      sync.Mutex
	loads   map[place]*load
	zeroed  map[int64]bool // windows whose zeros were handed over
	touched snapshot.Pages
	seen    block.Set
	puts    sync.WaitGroup
}

// place is one frame.
type place struct{ layer, frame int }

// load is some frames on their way.
type load struct {
	frames block.Frames
	once   sync.Once
	err    error
	pieces atomic.Pointer[[]piece] // until they are in the kernel's cache
	over   chan struct{}           // closed when they are, or can't be had
}

// piece is a stretch of the memory.
type piece struct {
	offset int64
	data   []byte
}

func newImage(reader *block.Reader, record bool) *image {
	return &image{reader: reader, fetcher: reader.Fetcher(), record: record, loads: map[place]*load{}, zeroed: map[int64]bool{}, log: slog.New(slog.DiscardHandler)}
}

// Size implements expose.Base.
func (m *image) Size() int64 { return m.reader.Size() }

// ReadAt implements io.ReaderAt: it is what the kernel asks when a page is touched that it does not have.
func (m *image) ReadAt(p []byte, offset int64) (int, error) {
	done := 0
	for done < len(p) && offset+int64(done) < m.Size() {
		at := offset + int64(done)
		part := p[done:min(len(p), done+int(pageSize-at%pageSize))]
		if err := m.readPage(part, at); err != nil {
			m.failed(err)
			return done, err
		}
		done += len(part)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// readPage fills p, which lies in one page.
func (m *image) readPage(p []byte, at int64) error {
	if m.record {
		m.note(at / pageSize)
		_, err := m.reader.ReadAt(p, at)
		return err
	}
	frames, ok := m.fetcher.At(at)
	if !ok {
		clear(p)
		m.giveZeros(at)
		return nil
	}
	l := m.loading(frames)
	m.run(l)
	if pieces := l.pieces.Load(); pieces != nil && fill(p, at, *pieces) {
		return nil
	}
	if l.err != nil && l.frames == frames {
		return l.err
	}
	// It was handed over long ago and the kernel has forgotten it, or what failed was another frame that came with it.
	_, err := m.reader.ReadAt(p, at)
	return err
}

// fill copies the bytes at offset out of pieces.
func fill(p []byte, offset int64, pieces []piece) bool {
	for _, piece := range pieces {
		if skip := offset - piece.offset; skip >= 0 && skip+int64(len(p)) <= int64(len(piece.data)) {
			copy(p, piece.data[skip:])
			return true
		}
	}
	return false
}

// loading returns the load that brings a frame, a new one unless there is one.
func (m *image) loading(frames block.Frames) *load {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.loads[place{frames.Layer, frames.First}]; l != nil {
		return l
	}
	return m.plan(frames)
}

// plan makes a load of frames, without those that others bring. The lock is held.
func (m *image) plan(frames block.Frames) *load {
	l := &load{frames: frames, over: make(chan struct{})}
	for frame := frames.First; frame < frames.End; frame++ {
		if key := (place{frames.Layer, frame}); m.loads[key] == nil {
			m.loads[key] = l
		}
	}
	return l
}

// run returns when the frames are there, or can't be had.
func (m *image) run(l *load) {
	l.once.Do(func() {
		var pieces []piece
		l.err = m.fetcher.Fetch(context.Background(), l.frames, func(offset int64, p []byte) { pieces = append(pieces, piece{offset, p}) })
		if l.err != nil {
			m.forget(l)
			close(l.over)
			return
		}
		l.pieces.Store(&pieces)
		m.puts.Go(func() { m.give(l) })
	})
}

// forget lets what failed be tried again.
func (m *image) forget(l *load) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for frame := l.frames.First; frame < l.frames.End; frame++ {
		if key := (place{l.frames.Layer, frame}); m.loads[key] == l {
			delete(m.loads, key)
		}
	}
}

// give hands what was loaded over to the kernel. That it fails costs time only.
func (m *image) give(l *load) {
	for _, p := range *l.pieces.Load() {
		if err := m.put(p.offset, p.data); err != nil {
			m.log.Debug("handing memory over ahead of its use", "error", err)
			break
		}
	}
	l.pieces.Store(nil)
	close(l.over)
}

// zeros is what holes are made of.
var zeros [window]byte

// giveZeros hands over the zeros around a page of them.
func (m *image) giveZeros(at int64) {
	first := at - at%window
	m.mu.Lock()
	known := m.zeroed[first]
	m.zeroed[first] = true
	m.mu.Unlock()
	if !known {
		m.puts.Go(func() { m.giveHoles(first, window) })
	}
}

// giveHoles hands over as zeros what nothing is stored of.
func (m *image) giveHoles(offset, length int64) {
	for run := range m.reader.Header().RunsIn(offset, length) {
		if !run.IsHole() {
			continue
		}
		for at := run.Offset; at < run.End(); at += window {
			if m.put(at, zeros[:min(window, run.End()-at)]) != nil {
				return
			}
		}
	}
}

// note keeps account of a page that was touched.
func (m *image) note(page int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.seen.Contains(page) { // the kernel may have forgotten it since
		m.seen.Add(page, 1)
		m.touched.Add(page)
	}
}

// pages are those that were touched, in order.
func (m *image) pages() snapshot.Pages {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append(snapshot.Pages{}, m.touched...)
}

// prefetch fetches pages, those first that are listed first, and returns when all are there, have failed, or ctx has ended. What fails is left to those
// who touch it.
func (m *image) prefetch(ctx context.Context, pages snapshot.Pages) {
	var loads []*load
	m.mu.Lock()
	for _, frames := range m.fetcher.Plan(pages.Bytes()) {
		loads = append(loads, m.plan(frames))
	}
	m.mu.Unlock()
	next := make(chan *load)
	var workers sync.WaitGroup
	var failed atomic.Int64
	for range min(fetchers, len(loads)) {
		workers.Go(func() {
			for l := range next {
				if m.run(l); l.err != nil {
					failed.Add(1)
				}
				<-l.over // so that no more is in this process's memory than the workers hold
			}
		})
	}
	workers.Go(func() {
		for offset, length := range pages.Bytes() {
			if ctx.Err() != nil {
				return
			}
			m.giveHoles(offset, length)
		}
	})
	for _, l := range loads {
		select {
		case next <- l:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	workers.Wait()
	m.log.Debug("memory fetched ahead of its use", "pages", pages.Len(), "reads", len(loads), "failed", failed.Load())
}
