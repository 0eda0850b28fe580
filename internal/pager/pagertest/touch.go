package pagertest

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const page = 4 << 10

// maxWrong is how many wrong pages are told.
const maxWrong = 100

func (m *memory) touch(t Touch) (*Touched, error) {
	places := t.Pages
	for at := t.From; len(t.Pages) == 0 && at < t.To; at += t.Step {
		places = append(places, at)
		if t.Step <= 0 {
			return nil, fmt.Errorf("a step of %d", t.Step)
		}
	}
	if t.Seed != 0 {
		rand.New(rand.NewSource(t.Seed)).Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	}
	var expect []byte
	if t.Expect != "" {
		var err error
		if expect, err = mapFile(t.Expect); err != nil {
			return nil, err
		}
		defer unix.Munmap(expect)
	}
	threads := max(1, t.Threads)
	raise(threads)
	parts := make([]part, threads)
	for i := range parts {
		p := &parts[i]
		for j := i; j < len(places); j += threads {
			mem, err := m.at(places[j]/page*page, page)
			if err != nil {
				return nil, err
			}
			p.places, p.pages = append(p.places, places[j]), append(p.pages, mem)
		}
		if t.Times {
			p.times = make([]time.Duration, 0, len(p.places))
		}
	}
	var group sync.WaitGroup
	begin := time.Now()
	for i := range parts {
		group.Go(func() {
			runtime.LockOSThread()
			parts[i].run(m, t, expect)
		})
	}
	group.Wait()
	out := &Touched{Took: time.Since(begin)}
	for _, p := range parts {
		out.Times = append(out.Times, p.times...)
		out.Wrong = append(out.Wrong, p.wrong...)
	}
	out.Wrong = out.Wrong[:min(len(out.Wrong), maxWrong)]
	return out, nil
}

// part is what one thread does.
type part struct {
	places []int64
	pages  [][]byte
	times  []time.Duration
	wrong  []int64
	sum    byte
}

func (p *part) run(m *memory, t Touch, expect []byte) {
	zeros := make([]byte, page)
	for i, mem := range p.pages {
		offset := p.places[i]
		if p.times != nil {
			begin := time.Now()
			p.sum += mem[offset%page]
			p.times = append(p.times, time.Since(begin))
		} else {
			p.sum += mem[offset%page]
		}
		if expect != nil {
			want := zeros
			if at := offset / page * page; !m.wasRemoved(at) {
				want = expect[at:][:page]
			}
			if !bytes.Equal(mem, want) && len(p.wrong) < maxWrong {
				p.wrong = append(p.wrong, offset)
			}
		}
		if t.Return {
			err := unix.Madvise(mem, unix.MADV_DONTNEED)
			if (err != nil || !bytes.Equal(mem, zeros)) && len(p.wrong) < maxWrong {
				p.wrong = append(p.wrong, offset)
			}
		}
		if t.Write {
			mem[offset%page]++
		}
	}
}

func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
}
