package pager

import (
	"errors"
	"os"
)

// errNoHold says that a machine's process can't be got hold of, so that nobody could end it should its pager die.
var errNoHold = errors.New("a machine has connected whose process can't be got hold of: this process has no descriptor left for it (ulimit -n)")

// connected remembers the process behind a fork.
func (t *Tracker) connected(p *pager, m message) {
	t.mu.Lock()
	c := p.claims[m.Fork]
	if c != nil && c.process == nil && m.process == nil {
		t.mu.Unlock()
		go func() { // since this is who hears the answer
			if err := p.release(c); err != nil { // by which the pager ends it
				t.c.Log.Error("a machine can't be ended", "fork", m.Fork, "error", err)
			}
			t.failed(p, m.Fork, errNoHold)
		}()
		return
	}
	if c == nil || c.process != nil {
		t.mu.Unlock()
		if m.process != nil {
			m.process.close()
		}
		return
	}
	c.process = m.process
	c.started = c.process.started()
	t.mu.Unlock()
	p.note()
}

// failed makes sure that a fork's machine is dead and tells why.
func (t *Tracker) failed(p *pager, forkID string, err error) {
	t.mu.Lock()
	c := p.claims[forkID]
	if c == nil || c.failed {
		t.mu.Unlock()
		return
	}
	c.failed = true
	if c.process != nil {
		if killErr := c.process.kill(); killErr != nil {
			t.c.Log.Error("a machine without memory can't be ended", "fork", forkID, "error", killErr)
		}
	}
	t.mu.Unlock()
	if t.c.Failed != nil {
		go t.c.Failed(forkID, err)
	}
}

// bury ends what a pager has left that died: its machines would wait for their
// memory forever.
func (t *Tracker) bury(p *pager) {
	t.mu.Lock()
	if t.pagers[p.template] == p {
		delete(t.pagers, p.template) // a later fork starts a new one
	}
	forks := make([]string, 0, len(p.claims))
	for id := range p.claims {
		forks = append(forks, id)
	}
	t.mu.Unlock()
	for _, id := range forks {
		t.failed(p, id, p.cause)
	}
	os.RemoveAll(p.root)
	if err := p.unnote(); err != nil {
		t.c.Log.Warn("a dead pager's note can't be removed", "error", err)
	}
}

// forget takes out a pager that could not start.
func (t *Tracker) forget(p *pager) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pagers[p.template] == p {
		delete(t.pagers, p.template)
	}
}
