package pager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Adoption is what a Tracker has found of one before it: ids of forks.
type Adoption struct {
	Adopted []string // served on, and this Tracker's from now on
	Ended   []string // not to be kept, or without a pager: their machines are dead
}

// helloPatience is how long a pager may take to tell its new Tracker what it serves.
const helloPatience = 10 * time.Second

// Adopt takes over the pagers of an earlier Tracker with the same StateDir, which
// must have ended. Forks for which keep is true are served on. All others are
// released and their machines killed, and so are the machines of pagers that have
// died or do not answer: none is left to wait for its memory.
func (t *Tracker) Adopt(ctx context.Context, keep func(templateID, forkID string) bool) (Adoption, error) {
	var result Adoption
	notes, err := filepath.Glob(filepath.Join(t.c.StateDir, "*"+noteSuffix))
	if err != nil {
		return result, err
	}
	var errs []error
	for _, path := range notes {
		n, err := readNote(path)
		if err == nil {
			err = t.adopt(ctx, n, keep, &result)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("adopting pagers: %w", err))
		}
	}
	return result, errors.Join(errs...)
}

func (t *Tracker) adopt(ctx context.Context, n note, keep func(templateID, forkID string) bool, result *Adoption) error {
	p := newPager(t, n.Template)
	p.root, p.began = n.Root, n.Started
	child, err := openProcess(n.PID, n.Started)
	if err != nil {
		return err
	}
	if child == nil {
		for _, f := range n.Forks {
			result.Ended = append(result.Ended, f.ID)
		}
		return p.scrap(n)
	}
	p.child = child
	err = p.meet(ctx)
	if errors.Is(err, errTaken) {
		child.close()
		return err
	}
	if err == nil && t.pagers[n.Template] != nil {
		p.part()
		err = fmt.Errorf("template %s has two pagers", n.Template)
	}
	if err != nil {
		t.c.Log.Warn("a pager that does not answer was ended, with its machines", "template", n.Template, "error", err)
		for _, f := range n.Forks {
			result.Ended = append(result.Ended, f.ID)
		}
		defer child.close()
		return errors.Join(child.kill(), p.scrap(n))
	}
	t.take(p)
	return t.sort(p, keep, result)
}

// take makes a pager that was met this Tracker's.
func (t *Tracker) take(p *pager) {
	t.mu.Lock()
	t.pagers[p.template] = p
	for id, c := range p.claims {
		t.forks[id] = c
	}
	t.mu.Unlock()
	close(p.ready)
	go p.listen(func() error {
		for !p.child.wait(time.Minute) {
		}
		return nil
	})
	p.note()
}

// sort releases the forks that nobody wants. A pager without any is closed.
func (t *Tracker) sort(p *pager, keep func(templateID, forkID string) bool, result *Adoption) error {
	t.mu.Lock()
	claims := make([]*claim, 0, len(p.claims))
	for _, c := range p.claims {
		claims = append(claims, c)
	}
	t.mu.Unlock()
	if len(claims) == 0 {
		t.forget(p)
		return p.close()
	}
	var errs []error
	for _, c := range claims {
		t.mu.Lock()
		failed := c.failed
		t.mu.Unlock()
		if !failed && keep(p.template, c.fork.ID) {
			result.Adopted = append(result.Adopted, c.fork.ID)
			continue
		}
		result.Ended = append(result.Ended, c.fork.ID)
		errs = append(errs, t.letGo(c))
	}
	return errors.Join(errs...)
}

// errTaken says that a pager obeys another Tracker.
var errTaken = errors.New("another process with the same directory of notes runs this pager")

// meet connects to a pager and learns what it serves.
func (p *pager) meet(ctx context.Context) error {
	path := filepath.Join(p.root, controlSocket)
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("meeting a pager: %w", err)
	}
	p.wire = newWire(conn)
	deadline := time.Now().Add(helloPatience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	err = p.wire.conn.SetReadDeadline(deadline)
	if err == nil {
		err = p.wire.send(message{Op: opHello})
	}
	for err == nil {
		var m message
		if m, err = p.wire.receive(); err != nil {
			break
		}
		switch m.Op {
		case eventFork:
			c := &claim{fork: Fork{ID: m.Fork, UID: m.UID}, pager: p, ready: make(chan struct{}), path: m.Path, failed: m.Error != nil}
			close(c.ready)
			p.claims[m.Fork] = c
		case eventConnected:
			switch c := p.claims[m.Fork]; {
			case c == nil:
			case m.process == nil:
				c.failed = true // it can't be got hold of: see errNoHold
			case c.process == nil:
				c.process, c.started = m.process, m.process.started()
			}
		case opHello:
			if m.Error == nil {
				return p.wire.conn.SetReadDeadline(time.Time{})
			}
			err = errTaken
		}
	}
	p.part()
	return fmt.Errorf("meeting a pager: %w", err)
}

// part is the opposite of meet.
func (p *pager) part() {
	p.wire.conn.Close()
	for _, c := range p.claims {
		if c.process != nil {
			c.process.close()
		}
	}
	clear(p.claims)
}

// scrap kills the machines of a pager that is no more, and removes what it left.
func (p *pager) scrap(n note) error {
	var errs []error
	for _, f := range n.Forks {
		machine, err := openProcess(f.PID, f.Started)
		if err != nil {
			errs = append(errs, err)
		}
		if machine == nil {
			continue
		}
		if err := machine.kill(); err != nil {
			errs = append(errs, err)
		}
		machine.close()
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // the note stays: somebody with more rights may succeed
	}
	return errors.Join(os.RemoveAll(p.root), p.unnote())
}
