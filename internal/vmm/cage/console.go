package cage

import (
	"strings"
	"sync"
)

// consoleBytes is how much of a machine's output is kept: enough for a kernel's last words.
const consoleBytes = 32 << 10

// Console keeps the end of what the VMM and the guest's serial port print. Writing to it never blocks, so a chatty guest can't stall its VMM.
type Console struct {
	mu   sync.Mutex
	tail []byte
	cut  bool
}

// Write implements [io.Writer] and never fails.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - consoleBytes; over > 0 {
		c.tail = append(c.tail[:0], c.tail[over:]...)
		c.cut = true
	}
	return len(p), nil
}

// String returns the kept output as printable text.
func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || (r >= ' ' && r != 0x7f) {
			return r
		}
		return -1 // a guest must not move our user's cursor
	}, string(c.tail))
	if c.cut {
		text = "…" + text
	}
	return strings.TrimSpace(text)
}
