package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/vmm"
)

// PauseSpec says what snapshot to make of a sandbox.
type PauseSpec struct {
	ID          uuid.UUID // zero: a new one
	Names       []string
	Labels      map[string]string
	KeepRunning bool // go on afterwards instead of ending
}

// PauseReport tells what a pause cost.
type PauseReport struct {
	Stopped     time.Duration `json:"stopped"` // the guest's CPUs stood still, until all that changes was captured
	Total       time.Duration `json:"total"`   // call to published snapshot
	MemoryBytes int64         `json:"memory_bytes"`
	DiskBytes   int64         `json:"disk_bytes"` // bytes that the snapshot adds, before compression
	GuestUsed   int64         `json:"guest_used"` // bytes of memory that the guest itself counted as used
}

// commandTimeout bounds what takes a live machine no more than some hundred milliseconds.
const commandTimeout = 60 * time.Second

// Pause freezes the sandbox and publishes it as a child of what it came from. Unless it is to keep running it is over then, and Close only frees what is left.
// The caller closes the snapshot.
// If anything fails, or ctx ends before the snapshot is published, the sandbox goes on as if nothing had happened, and nothing is published.
func (s *Sandbox) Pause(ctx context.Context, spec PauseSpec, p Progress) (_ *snapshot.Snapshot, report PauseReport, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	begin := time.Now()
	if err := s.pausable(spec); err != nil {
		return nil, report, err
	}
	if spec.ID == uuid.Nil {
		spec.ID = uuid.New()
	}
	draft, err := s.host.Snapshots.NewDraft(ctx, spec.ID, s.parent)
	if err != nil {
		return nil, report, err
	}
	defer draft.Abort()
	p.Phase("pause")

	s.session.Lock()
	sessionBack := sync.OnceFunc(s.session.Unlock)
	defer sessionBack()
	quiet, err := s.quiesce(ctx)
	if err != nil {
		return nil, report, err
	}
	report.GuestUsed, s.meta.GuestUsed = quiet.MemUsed, quiet.MemUsed
	s.meta.Processes = processes(quiet.Processes)
	still := true
	defer func() {
		if err != nil && still && s.Err() == nil {
			err = errors.Join(err, s.goOn())
		}
	}()
	stopped := time.Now()
	if err := s.capture(ctx, draft, p); err != nil {
		return nil, report, s.explain(ctx, err)
	}
	report.Stopped = time.Since(stopped)
	if spec.KeepRunning {
		still = false
		if err := s.goOn(); err != nil {
			return nil, report, err
		}
		sessionBack()
	}
	p.Phase("publish")
	snap, err := s.publish(ctx, draft, spec, p)
	if err != nil {
		return nil, report, fmt.Errorf("publishing snapshot %s: %w", spec.ID, err)
	}
	report.MemoryBytes, report.DiskBytes = ownBytes(snap.Memory()), ownBytes(snap.Disk())
	if !spec.KeepRunning {
		still = false // ended, and not to be revived
		s.client = nil
		err = s.end(s.machine)
	} else {
		err = s.follow(context.WithoutCancel(ctx), snap.ID())
	}
	if err != nil {
		return nil, report, errors.Join(fmt.Errorf("snapshot %s was published, but then: %w", spec.ID, err), snap.Close())
	}
	report.Total = time.Since(begin)
	return snap, report, nil
}

// processes takes over what a guest tells of its processes, as far as metadata has room for it: a guest may tell anything.
func processes(told []api.ProcessInfo) []snapshot.Process {
	var out []snapshot.Process
	for _, p := range told[:min(len(told), snapshot.MaxProcesses)] {
		command := strings.ToValidUTF8(p.Command[:min(len(p.Command), snapshot.MaxCommand/4)], "\ufffd")
		out = append(out, snapshot.Process{PID: p.PID, Parent: p.Parent, UID: p.UID, Command: command})
	}
	return out
}

// pausable refuses a pause that can't succeed before it disturbs the machine.
func (s *Sandbox) pausable(spec PauseSpec) error {
	for _, name := range spec.Names {
		if err := store.CheckName(name); err != nil {
			return err
		}
	}
	if s.closed {
		return errors.New("the sandbox is closed")
	}
	if s.held {
		return errors.New("the sandbox is held: release it first")
	}
	select {
	case <-s.machine.Done():
		if err := s.Err(); err != nil {
			return err
		}
		return errors.New("the sandbox has been paused and runs no more: wake its snapshot")
	default:
		return nil
	}
}

// quiesce stills the guest and ends its session: no session outlives a snapshot.
func (s *Sandbox) quiesce(ctx context.Context) (api.QuiesceReport, error) {
	alive, cancel := s.whileAlive(ctx)
	defer cancel()
	report, err := s.client.Quiesce(alive, api.QuiesceOptions{DropCaches: s.before == nil, Compact: s.before == nil, FreezeFilesystem: true})
	if err != nil {
		err = s.explain(alive, fmt.Errorf("stilling the guest: %w", err))
		if ctx.Err() != nil && s.Err() == nil {
			// A guest that fails to be still goes on by itself; one that was not waited for may have succeeded.
			err = errors.Join(err, s.revive(func(ctx context.Context) error { return s.wake(ctx, s.client) }))
		}
		return report, err
	}
	s.client.Close()
	return report, nil
}

// goOn lets a machine that was stopped run again, with a new session.
func (s *Sandbox) goOn() error {
	return s.revive(func(ctx context.Context) error {
		if err := s.machine.Continue(ctx); err != nil {
			return err
		}
		return s.connect(ctx)
	})
}

// revive brings a still guest back, whether or not anybody still waits for what it was stilled for. A machine that can't be brought back is ended.
func (s *Sandbox) revive(how func(context.Context) error) error {
	ctx, cancel := uninterrupted()
	defer cancel()
	err := how(ctx)
	if err != nil {
		err = fmt.Errorf("letting the machine go on: %w", err)
		s.fail(err)
	}
	return err
}

// uninterrupted returns a context for what must not be left half done: a VMM whose answer is not waited for is lost.
func uninterrupted() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), commandTimeout, fmt.Errorf("no answer in %v", commandTimeout))
}

// capture stops the machine and saves what changes: devices and memory at once, the disk by setting it aside.
func (s *Sandbox) capture(ctx context.Context, draft *snapshot.Draft, p Progress) error {
	whole, cancel := uninterrupted()
	defer cancel()
	if err := s.machine.Stop(whole); err != nil {
		return fmt.Errorf("stopping the machine: %w", err)
	}
	state, err := s.machine.SaveState(whole)
	if err != nil {
		return fmt.Errorf("saving the devices' state: %w", err)
	}
	if err := draft.State(state); err != nil {
		return err
	}
	if err := s.captureMemory(ctx, draft, p); err != nil {
		return err
	}
	return s.disk.freeze()
}

// captureMemory saves the written memory of the stopped machine.
func (s *Sandbox) captureMemory(ctx context.Context, draft *snapshot.Draft, p Progress) error {
	dirty, err := s.machine.Dirty(ctx)
	if err != nil {
		return err
	}
	// Of a process that has died meanwhile the kernel says that it has written nothing. If its memory can still be read it was there all the time.
	if err := s.machine.ReadMemory(make([]byte, 1), 0); err != nil {
		return err
	}
	start := draft.Memory
	if s.before == nil {
		start = draft.FreshMemory
	}
	w, err := start(s.meta.MemoryBytes)
	if err != nil {
		return err
	}
	return saveBlocks(ctx, w, dirty, memoryOf{s.machine}, s.before, p.Advance)
}

// publish completes the draft with the disk and the description.
func (s *Sandbox) publish(ctx context.Context, draft *snapshot.Draft, spec PauseSpec, p Progress) (*snapshot.Snapshot, error) {
	w, err := draft.Disk(s.meta.DiskBytes)
	if err != nil {
		return nil, err
	}
	if err := s.disk.save(ctx, w, p.Advance); err != nil {
		return nil, err
	}
	meta := s.meta
	meta.Kind = snapshot.KindMachine
	meta.Created = time.Now().UTC()
	meta.Labels = spec.Labels
	snap, err := draft.Commit(ctx, meta)
	if err != nil {
		return nil, err
	}
	if err := s.host.nameAll(ctx, spec.Names, snap.ID()); err != nil {
		err = errors.Join(err, snap.Close())
		_, undo := s.host.Snapshots.Remove(context.WithoutCancel(ctx), snap.ID(), false)
		return nil, errors.Join(err, undo)
	}
	return snap, nil
}

// nameAll points all names to a snapshot, or leaves them all as they were.
func (h *Host) nameAll(ctx context.Context, names []string, id uuid.UUID) error {
	before := map[string]uuid.UUID{}
	for i, name := range names {
		had, err := h.Snapshots.Name(ctx, name)
		if err == nil {
			before[name] = had
		} else if errors.Is(err, store.ErrNoName) {
			err = nil
		}
		if err == nil {
			err = h.Snapshots.Tag(ctx, name, id)
		}
		if err != nil {
			return errors.Join(err, h.rename(context.WithoutCancel(ctx), names[:i], before))
		}
	}
	return nil
}

// rename gives names back to what they named before.
func (h *Host) rename(ctx context.Context, names []string, before map[string]uuid.UUID) error {
	var errs []error
	for _, name := range names {
		if id, had := before[name]; had {
			errs = append(errs, h.Snapshots.Tag(ctx, name, id))
		} else {
			errs = append(errs, h.Snapshots.Untag(ctx, name))
		}
	}
	return errors.Join(errs...)
}

// follow makes a snapshot that the machine has outlived the parent of the next one.
func (s *Sandbox) follow(ctx context.Context, id uuid.UUID) error {
	snap, err := s.host.Snapshots.OpenID(ctx, id)
	if err != nil {
		return err
	}
	if err := s.disk.rebase(snap.Disk()); err != nil {
		return errors.Join(err, snap.Close())
	}
	old := s.own
	s.own, s.parent = snap, snap
	if snap.Memory() != nil {
		s.before, s.meta = snap.Memory(), *snap.Metadata()
	}
	if old != nil {
		return old.Close()
	}
	return nil
}

// ownBytes is what an image's newest layer holds, before compression.
func ownBytes(r *block.Reader) int64 {
	h := r.Header()
	for _, layer := range h.Layers {
		if layer.ID == h.ID {
			return layer.Size
		}
	}
	return 0
}

// memoryOf reads guest memory like a file.
type memoryOf struct{ vmm.Machine }

// ReadAt implements [io.ReaderAt].
func (m memoryOf) ReadAt(p []byte, off int64) (int, error) {
	if err := m.ReadMemory(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}
