package pager

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/block"
)

const (
	// assembling is how many frames of one page are read at once.
	assembling = 8
	// memoryPatience is how long the host may have no page to give.
	memoryPatience = 10 * time.Second
)

// answer fills a window in which there was a fault: at once if all of it is at
// hand, or else in the background.
func (m *machine) answer(w window, scratch []piece) {
	if err := m.fillCached(w, scratch); err != nil && !errors.Is(err, errEnded) {
		m.background(w)
	}
}

// errMissing says that a frame has to be read first.
var errMissing = errors.New("a frame is not cached")

// fillCached fills a window with what is in the cache, the place that was touched
// first.
func (m *machine) fillCached(w window, scratch []piece) error {
	pieces := m.source.pieces(scratch[:0], w.Range)
	if !aligned(pieces, w) {
		return errMissing
	}
	return eachFrom(pieces, w.focus, func(p piece) error {
		if p.isHole() {
			return m.put(w, p.Range, nil)
		}
		held, data := m.source.cached(p)
		if held == nil {
			return errMissing
		}
		defer m.source.frames.release(held)
		return m.put(w, p.Range, data)
	})
}

// aligned tells whether pieces consist of whole pages.
func aligned(pieces []piece, w window) bool {
	for _, p := range pieces {
		if (uint64(p.Offset)-w.region.offset)%w.region.pageSize != 0 || uint64(p.Length)%w.region.pageSize != 0 {
			return false
		}
	}
	return true
}

// eachFrom calls f for the piece that holds a place and then for all others.
func eachFrom(pieces []piece, focus int64, f func(piece) error) error {
	first := 0
	for i, p := range pieces {
		if p.Offset <= focus && focus < p.End() {
			first = i
		}
	}
	if err := f(pieces[first]); err != nil {
		return err
	}
	for i, p := range pieces {
		if i == first {
			continue
		}
		if err := f(p); err != nil {
			return err
		}
	}
	return nil
}

// background fills a window from the image. Of the faults in one window only the
// first starts that.
func (m *machine) background(w window) {
	m.pendingMu.Lock()
	defer m.pendingMu.Unlock()
	if m.ctx.Err() != nil {
		return
	}
	if again := m.pending[w.Offset]; again != nil {
		*again = true // what was filled may have been given back since
		return
	}
	again := new(bool)
	m.pending[w.Offset] = again
	m.filling.Go(func() {
		for {
			err := m.fill(m.ctx, w)
			m.pendingMu.Lock()
			if err != nil || !*again {
				delete(m.pending, w.Offset)
				m.pendingMu.Unlock()
				if err != nil && m.ctx.Err() == nil && !errors.Is(err, errEnded) {
					m.fail(err)
				}
				return
			}
			*again = false
			m.pendingMu.Unlock()
		}
	})
}

// fill fills a window, reading what is not at hand.
func (m *machine) fill(ctx context.Context, w window) error {
	pieces := m.source.pieces(nil, w.Range)
	if !aligned(pieces, w) {
		return m.assemble(ctx, w, pieces)
	}
	return eachFrom(pieces, w.focus, func(p piece) error {
		if p.isHole() {
			return m.retry(ctx, func() error { return m.put(w, p.Range, nil) })
		}
		held, data, err := m.source.load(ctx, p)
		if err != nil {
			return err
		}
		defer m.source.frames.release(held)
		return m.retry(ctx, func() error { return m.put(w, p.Range, data) })
	})
}

// assemble fills a window whose pages are made of several pieces.
func (m *machine) assemble(ctx context.Context, w window, pieces []piece) error {
	page := make([]byte, w.Length)
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(assembling)
	for _, p := range pieces {
		if p.layer == block.Hole {
			continue
		}
		group.Go(func() error {
			held, data, err := m.source.load(reading, p)
			if err != nil {
				return err
			}
			defer m.source.frames.release(held)
			copy(page[p.Offset-w.Offset:], data)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return m.retry(ctx, func() error { return m.put(w, w.Range, page) })
}

// retry calls put until it neither finds that events are to be read first nor,
// for too long, that the host is out of memory. Pages that are there already do
// not stop it.
func (m *machine) retry(ctx context.Context, put func() error) error {
	var short time.Time
	for attempt := 1; ; attempt++ {
		err := put()
		switch {
		case errors.Is(err, errAgain):
		case errors.Is(err, errNoMemory):
			if short.IsZero() {
				short = time.Now()
			}
			if time.Since(short) > memoryPatience {
				return err
			}
		default:
			return err
		}
		pause(ctx, attempt)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}
