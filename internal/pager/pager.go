package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/block"
)

const (
	// startPatience is how long a pager may take to open its image.
	startPatience = time.Minute
	// closePatience is how long one may take to end its machines and itself.
	closePatience = 15 * time.Second
)

// pager is a Tracker's side of one pager process.
type pager struct {
	tracker  *Tracker
	template string            // its id
	claims   map[string]*claim // guarded by the Tracker's lock

	ready chan struct{} // closed when start is over
	err   error         // why it could not start; set before
	root  string
	child *process
	began uint64 // when that started, in clock ticks
	wire  *wire
	ended chan struct{} // closed when the process and the connection are gone
	exit  error         // what was wrong with its end; set before
	cause error         // the same as a reason for its forks to end

	mu      sync.Mutex
	closing bool
	dead    bool // its end has come unasked
	asked   uint64
	answers map[uint64]chan message

	noteMu sync.Mutex
	gone   bool // there is nothing to note any more
}

func newPager(t *Tracker, template string) *pager {
	return &pager{
		tracker: t, template: template, claims: map[string]*claim{},
		ready: make(chan struct{}), ended: make(chan struct{}), answers: map[uint64]chan message{},
	}
}

// listen receives what the process says until it is gone. wait returns when it is,
// and how it ended.
func (p *pager) listen(wait func() error) {
	var err error
	for err == nil {
		var m message
		if m, err = p.wire.receive(); err == nil {
			p.hear(m)
		}
	}
	p.wire.conn.Close()
	p.mu.Lock()
	closing := p.closing
	p.dead = !closing
	p.mu.Unlock()
	if !closing {
		// Without its connection it is of no use, if it lives at all.
		_ = p.child.kill()
	}
	if p.exit = wait(); p.exit != nil {
		err = p.exit
	}
	p.cause = fmt.Errorf("the process that served the memory of template %s has ended: %w", p.template, err)
	if !closing {
		p.tracker.bury(p)
	}
	close(p.ended)
}

// hear acts on a message.
func (p *pager) hear(m message) {
	switch m.Op {
	case eventConnected:
		p.tracker.connected(p, m)
	case eventFailed:
		if m.Error == nil {
			m.Error = &block.Told{Text: "its pager does not say why"}
		}
		p.tracker.failed(p, m.Fork, m.Error)
	default:
		p.mu.Lock()
		answer := p.answers[m.ID]
		delete(p.answers, m.ID)
		p.mu.Unlock()
		if answer != nil {
			answer <- m
		}
	}
}

// ask sends a message and returns the answer.
func (p *pager) ask(ctx context.Context, m message) (message, error) {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return message{}, context.Cause(ctx)
	}
	if p.err != nil {
		return message{}, p.err
	}
	answer := make(chan message, 1)
	p.mu.Lock()
	p.asked++
	m.ID = p.asked
	p.answers[m.ID] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.answers, m.ID)
		p.mu.Unlock()
	}()
	if err := p.wire.send(m); err != nil {
		select {
		case <-p.ended: // which it will say better
			return message{}, p.cause
		case <-time.After(sendPatience):
			return message{}, fmt.Errorf("asking the pager: %w", err)
		}
	}
	select {
	case a := <-answer:
		if a.Error != nil {
			return a, a.Error
		}
		return a, nil
	case <-p.ended:
		return message{}, p.cause
	case <-ctx.Done():
		return message{}, context.Cause(ctx)
	}
}

func (p *pager) register(ctx context.Context, f Fork) (string, error) {
	a, err := p.ask(ctx, message{Op: opRegister, Fork: f.ID, UID: f.UID})
	for list := range slices.Chunk(f.Prefetch, rangeBatch) {
		if err == nil {
			_, err = p.ask(ctx, message{Op: opPrefetch, Fork: f.ID, Ranges: list})
		}
	}
	return a.Path, err
}

// release ends the serving of one fork of several.
func (p *pager) release(c *claim) error {
	defer p.note()
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	_, err := p.ask(ctx, message{Op: opRelease, Fork: c.fork.ID})
	select {
	case <-p.ended:
		return nil // and its forks with it
	default:
		return err
	}
}

// close ends the process.
func (p *pager) close() error {
	<-p.ready
	if p.err != nil {
		return nil
	}
	p.mu.Lock()
	dead := p.dead
	p.closing = true
	p.mu.Unlock()
	if dead { // before, and it is buried, or being so
		<-p.ended
		p.child.close()
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	_, err := p.ask(ctx, message{Op: opClose})
	select {
	case <-p.ended:
		err = nil // the answer may have been lost on the way
		if p.exit != nil {
			err = fmt.Errorf("closing the pager of template %s: %w", p.template, p.exit)
		}
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("closing the pager of template %s: it has not ended in %v and was killed", p.template, closePatience), p.child.kill())
		<-p.ended
	}
	p.child.close()
	return errors.Join(err, os.RemoveAll(p.root), p.unnote())
}
