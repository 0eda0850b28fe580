package agent

import (
	"cmp"
	"slices"
	"sync"
)

// keptEnds is how many ended processes are remembered, so that a client that
// lost its session can still learn how its process ended.
const keptEnds = 64

// table knows the processes by pid and tag.
type table struct {
	mu    sync.Mutex
	alive map[int]*proc
	ended []*proc // oldest first
}

func newTable() *table { return &table{alive: map[int]*proc{}} }

func (t *table) add(p *proc) {
	t.mu.Lock()
	t.alive[p.pid] = p
	t.mu.Unlock()
}

// retire moves an ended process to the remembered ones.
func (t *table) retire(p *proc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// The pid may have come back to life as another process of ours.
	if t.alive[p.pid] == p {
		delete(t.alive, p.pid)
	}
	if len(t.ended) == keptEnds {
		t.ended = slices.Delete(t.ended, 0, 1)
	}
	t.ended = append(t.ended, p)
}

// list returns the living, by pid.
func (t *table) list() []*proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*proc, 0, len(t.alive))
	for _, p := range t.alive {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *proc) int { return cmp.Compare(a.pid, b.pid) })
	return all
}

func (t *table) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.alive)
}

// find returns the living process that match accepts, and failing that, if
// asked for, the one that ended last. Nil: none.
func (t *table) find(match func(*proc) bool, endedToo bool) *proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.alive {
		if match(p) {
			return p
		}
	}
	if endedToo {
		for _, p := range slices.Backward(t.ended) {
			if match(p) {
				return p
			}
		}
	}
	return nil
}
