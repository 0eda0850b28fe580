package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/sporevm/spore/internal/snapshot"
)

// LazyMemory is a snapshot's memory as a file whose pages come when they are touched.
type LazyMemory interface {
	// File is to be mapped privately, and not to be read by this process's own hand. It is closed by Close.
	File() *os.File
	// Pages returns the pages that were touched so far, in order, if that was asked for.
	Pages(ctx context.Context) (snapshot.Pages, error)
	// Close lets go of it; a machine that still has it mapped dies of what it touches next.
	Close() error
}

// LazyOptions say how memory is served.
type LazyOptions struct {
	Prefetch bool // fetch what is known to be touched before it is
	Record   bool // keep account of what is touched, and read nothing ahead
	// Failed is called, once at most, when the memory can't be had any more: before the machine feels it, if somebody can tell. It returns at once.
	Failed func(error)
}

// farPatience is how long the end of a machine may be waited for before the memory that it may be waiting for is taken away.
const farPatience = 200 * time.Millisecond

// memoryFinder gives a sandbox the memory that it wakes with.
type memoryFinder func(ctx context.Context, s *Sandbox, o ResumeOptions, p Progress) error

// memory has the sandbox map the snapshot's memory: page by page if it is far away, else laid out flat, which is done once and is quicker ever after.
func (h *Host) memory(ctx context.Context, s *Sandbox, o ResumeOptions, p Progress) error {
	if served, err := s.serve(ctx, o); served || err != nil {
		return err
	}
	if h.LazyMemory != nil && h.Snapshots.IsFar() {
		err := s.mapLazily(ctx, LazyOptions{Prefetch: !o.NoPrefetch})
		if err == nil || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, errors.ErrUnsupported) {
			h.Log.Debug("memory is laid out before the machine wakes: it can't be served lazily here", "reason", err)
		} else {
			h.Log.Warn("memory is laid out before the machine wakes", "reason", err)
		}
	}
	var err error
	s.memory, err = h.Snapshots.FlatMemory(ctx, s.parent, p.Advance)
	s.before = s.memory
	return err
}

// lazyMemory is a sandbox's LazyMemory, and whether it has failed.
type lazyMemory struct {
	LazyMemory
	failed chan struct{} // closed when the sandbox knows why
	once   sync.Once
}

// mapLazily has the sandbox map memory that is served page by page.
func (s *Sandbox) mapLazily(ctx context.Context, o LazyOptions) error {
	l := &lazyMemory{failed: make(chan struct{})}
	o.Failed = func(err error) { s.memoryFailed(l, err) }
	var err error
	if l.LazyMemory, err = s.host.LazyMemory(ctx, s.parent, o); err != nil {
		return err
	}
	// What a pause compares with is read by another way than the file, which this process is to leave alone.
	s.lazy, s.memory, s.before = l, l.File(), s.parent.Memory()
	return nil
}

// memoryFailed is fail for memory. The VMM can't end before it has an answer from the memory, so it is not waited for.
func (s *Sandbox) memoryFailed(l *lazyMemory, reason error) {
	reason = fmt.Errorf("reading memory: %w", reason)
	s.faultMu.Lock()
	first := s.fault == nil
	if first {
		s.fault = reason
	}
	s.faultMu.Unlock()
	l.once.Do(func() { close(l.failed) })
	if first {
		s.host.Log.Error("ending the machine", "sandbox", s.id, "reason", reason)
	}
	go s.fail(reason)
}

// diedOf tells whether a VMM's death was by a signal.
func diedOf(death error, signal syscall.Signal) bool {
	var exit *exec.ExitError
	if !errors.As(death, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == signal
}

// awaitMemory gives the reason of a death time to be known, where it may be one of missing memory: who maps it gets a bus error, and who has it served is killed.
func (s *Sandbox) awaitMemory(death error) {
	switch {
	case s.lazy != nil && diedOf(death, syscall.SIGBUS):
		s.lazy.await()
	case s.pages != nil && diedOf(death, syscall.SIGKILL):
		s.pages.await()
	}
}

// await gives the reason of a death time to be known.
func (l *lazyMemory) await() {
	select {
	case <-l.failed:
	case <-time.After(reasonDelay):
	}
}

// memoryFault is the reason of a VMM's death while it started, if it was memory.
func (s *Sandbox) memoryFault(death error) error {
	if s.lazy == nil && s.pages == nil {
		return nil
	}
	s.awaitMemory(death)
	s.faultMu.Lock()
	defer s.faultMu.Unlock()
	return s.fault
}

// whileResuming lets go of memory from afar when ctx ends: a VMM that waits for it can't be ended. It does so until the returned function is called.
func (s *Sandbox) whileResuming(ctx context.Context) (stop func()) {
	if s.lazy == nil {
		return func() {}
	}
	l := s.lazy
	release := context.AfterFunc(ctx, func() { l.Close() })
	return func() { release() }
}
