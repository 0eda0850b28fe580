package block

import (
	"container/list"
	"sync"
)

// frameKey names a frame of one reader.
type frameKey struct{ layer, frame int }

// frameCache keeps the verified bytes of the frames used last. Those who ask for
// one frame at the same time share one load. Bytes in the cache never change and
// live as long as someone holds them.
type frameCache struct {
	limit int // bytes

	mu      sync.Mutex
	entries map[frameKey]*list.Element // of *cacheEntry
	recent  list.List                  // most recently used first
	held    int                        // bytes
}

type cacheEntry struct {
	key   frameKey
	size  int
	ready chan struct{} // closed once data and err are set
	data  []byte
	err   error
}

func newFrameCache(limit int) *frameCache {
	return &frameCache{limit: limit, entries: make(map[frameKey]*list.Element)}
}

// get returns the frame's bytes, loading its size bytes if they are not there.
// A failed load is not kept.
func (c *frameCache) get(key frameKey, size int, load func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	if e := c.touch(key); e != nil {
		c.mu.Unlock()
		<-e.ready
		return e.data, e.err
	}
	e := &cacheEntry{key: key, size: size, ready: make(chan struct{})}
	element := c.recent.PushFront(e)
	c.entries[key] = element
	c.held += size
	for c.held > c.limit && c.recent.Len() > 1 {
		c.drop(c.recent.Back())
	}
	c.mu.Unlock()

	e.data, e.err = load()
	close(e.ready)
	if e.err != nil {
		c.mu.Lock()
		if c.entries[key] == element {
			c.drop(element)
		}
		c.mu.Unlock()
	}
	return e.data, e.err
}

// peek returns the frame's bytes if they are there now.
func (c *frameCache) peek(key frameKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.touch(key)
	if e == nil {
		return nil
	}
	select {
	case <-e.ready:
		return e.data
	default:
		return nil
	}
}

// touch returns the entry, now the most recently used one, or nil.
func (c *frameCache) touch(key frameKey) *cacheEntry {
	element, ok := c.entries[key]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(element)
	return element.Value.(*cacheEntry)
}

// drop forgets an entry. Those who wait for it or hold its bytes keep them.
func (c *frameCache) drop(element *list.Element) {
	e := c.recent.Remove(element).(*cacheEntry)
	delete(c.entries, e.key)
	c.held -= e.size
}
