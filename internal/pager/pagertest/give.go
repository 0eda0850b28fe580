package pagertest

import (
	"bytes"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// give has pages given back by some threads, one after another, while others read
// what lies around those.
func (m *memory) give(g Giving) (*Touched, error) {
	image, err := mapFile(g.Expect)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(image)
	mem, err := m.at(0, g.To)
	if err != nil {
		return nil, err
	}
	raise(g.Givers + g.Readers)
	w := &giving{mem: mem, image: image, gone: make([]atomic.Bool, g.To/page)}
	var group sync.WaitGroup
	for range g.Givers {
		group.Go(func() {
			runtime.LockOSThread()
			w.give()
		})
	}
	for n := range g.Readers {
		group.Go(func() {
			runtime.LockOSThread()
			w.read(n)
		})
	}
	group.Wait()
	for n := range w.gone { // also what came back when nobody looked any more
		if !bytes.Equal(w.at(n), w.zeros[:]) {
			w.complain(n)
		}
	}
	m.removed = append(m.removed, [2]int64{0, g.To})
	return &Touched{Wrong: w.wrong}, nil
}

// giving is what the threads of a Giving share.
type giving struct {
	mem, image []byte
	zeros      [page]byte
	next       atomic.Int64  // page to be given back
	gone       []atomic.Bool // by page: the call that gave it back has returned

	mu    sync.Mutex
	wrong []int64
}

func (w *giving) at(n int) []byte { return w.mem[n*page:][:page] }

func (w *giving) give() {
	for {
		n := int(w.next.Add(1)) - 1
		if n >= len(w.gone) {
			return
		}
		if unix.Madvise(w.at(n), unix.MADV_DONTNEED) != nil {
			w.complain(n)
		}
		w.gone[n].Store(true)
		if !w.right(n) {
			w.complain(n)
		}
	}
}

// read reads pages near the one that is given back next, some before and more after it.
func (w *giving) read(seed int) {
	for step := seed; ; step++ {
		next := int(w.next.Load())
		if next >= len(w.gone) {
			return
		}
		n := next - 8 + step*7%32
		if n >= 0 && n < len(w.gone) && !w.right(n) {
			w.complain(n)
		}
	}
}

// right tells whether a page that may be given back meanwhile is of the image, or
// zeros, or has turned from one to the other while it was read.
func (w *giving) right(n int) bool {
	gone, mem, image := w.gone[n].Load(), w.at(n), w.image[n*page:][:page]
	if gone {
		return bytes.Equal(mem, w.zeros[:])
	}
	turned := 0
	for turned < page && mem[turned] == image[turned] {
		turned++
	}
	return bytes.Equal(mem[turned:], w.zeros[turned:])
}

func (w *giving) complain(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) < maxWrong {
		w.wrong = append(w.wrong, int64(n)*page)
	}
}
