package pager

import (
	"context"
	"sync"
	"time"
)

// prefetchers is how many windows of a prefetch list are under way at once. Most
// wait for an image that is far away; few are running if it is near.
const prefetchers = 16

// prefetch fills ranges of the image in their order, rounded to windows. It ends
// with the machine, or when a window can't be filled: that is for the fault to
// tell that needs it.
func (m *machine) prefetch(ranges []Range) {
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	begin := time.Now()
	list := &prefetchList{layout: m.layout, ranges: ranges}
	var group sync.WaitGroup
	for range prefetchers {
		group.Go(func() {
			scratch := make([]piece, 0, FaultAround/unit)
			for ctx.Err() == nil {
				w, ok := list.next()
				if !ok {
					return
				}
				err := m.fillCached(w, scratch)
				if err != nil {
					err = m.fill(ctx, w)
				}
				if err != nil {
					cancel()
					return
				}
				m.source.prefetched.Add(1)
			}
		})
	}
	group.Wait()
	m.source.prefetching.Add(int64(time.Since(begin)))
}

// prefetchList gives out the windows of ranges.
type prefetchList struct {
	mu     sync.Mutex
	layout layout
	ranges []Range // what is left of them
}

// next returns the next window. What is in no region is passed over.
func (l *prefetchList) next() (window, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ranges) > 0 {
		r := &l.ranges[0]
		region, ok := l.layout.at(r.Offset)
		if r.Length <= 0 || !ok {
			l.ranges = l.ranges[1:]
			continue
		}
		w := region.around(r.Offset)
		*r = Range{Offset: w.End(), Length: r.End() - w.End()}
		return w, true
	}
	return window{}, false
}
