package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// resumeTimeout bounds the time from running CPUs to the agent's answer.
const resumeTimeout = 60 * time.Second

// ResumeOptions say how to wake a snapshot. The zero value wakes it as it was frozen.
type ResumeOptions struct {
	Accel      string // auto, kvm or tcg; a snapshot taken under one does not run under the other
	NoPrefetch bool   // memory and disk from afar come when they are touched, and nothing before

	// ID is whom the machine wakes as. A sandbox that slept keeps its own; the zero UUID is a new one.
	ID uuid.UUID
	// Env is added to the environment of whatever is started from now on.
	Env map[string]string

	Policy network.Policy // what a machine with a tap interface may reach; it is not part of snapshots
}

// Resume wakes a snapshot: the machine goes on where it was frozen, as somebody else. The caller keeps snap open for as long as the sandbox.
func (h *Host) Resume(ctx context.Context, snap *snapshot.Snapshot, o ResumeOptions, p Progress) (*Sandbox, error) {
	return h.resume(ctx, snap, o, h.memory, p)
}

// resume is Resume with a choice of how the sandbox comes to its memory.
func (h *Host) resume(ctx context.Context, snap *snapshot.Snapshot, o ResumeOptions, findMemory memoryFinder, p Progress) (_ *Sandbox, err error) {
	begin := time.Now()
	meta := *snap.Metadata()
	if !meta.HasMemory() {
		return nil, fmt.Errorf("snapshot %s has a disk but no memory: there is nothing to wake; boot it with create --from", snap.ID())
	}
	accel, err := vmm.ParseAccel(o.Accel)
	if err != nil {
		return nil, err
	}
	if accel == vmm.Auto {
		accel = vmm.Accel(meta.Engine.Accel)
	}
	if err := h.compatible(ctx, meta, accel); err != nil {
		return nil, err
	}
	if err := checkPolicy(o.Policy, vmm.Network(meta.Net)); err != nil {
		return nil, fmt.Errorf("waking snapshot %s: %w", snap.ID(), err)
	}
	state, err := snap.State(ctx)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{host: h, id: o.ID, meta: meta, parent: snap, policy: o.Policy}
	if s.id == uuid.Nil {
		s.id = uuid.New()
	}
	s.addEnv(o.Env)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	opened := time.Now()
	if h.Snapshots.IsFar() && !o.NoPrefetch {
		s.ahead = h.fetchDisk(snap)
	}
	p.Phase("memory")
	if err := findMemory(ctx, s, o, p); err != nil {
		return nil, err
	}
	defer s.whileResuming(ctx)()
	laidOut := time.Now()
	p.Phase("wake")
	config := vmm.Config{
		Arch: meta.Arch, CPUs: meta.VCPUs, MemoryBytes: meta.MemoryBytes,
		Accel: accel, Network: vmm.Network(meta.Net), State: state,
	}
	if err := s.start(ctx, config); err != nil {
		return nil, err
	}
	started := time.Now()
	timed, cancel := context.WithTimeoutCause(ctx, resumeTimeout, fmt.Errorf("no answer from its agent in %v", resumeTimeout))
	defer cancel()
	if err := s.connect(timed); err != nil {
		return nil, fmt.Errorf("waking snapshot %s: %w", snap.ID(), err)
	}
	end, vm := time.Now(), s.machine.Phases()
	s.phases = Phases{Open: opened.Sub(begin), Memory: laidOut.Sub(opened), Spawn: vm.Spawn, Load: vm.Load, Wake: end.Sub(started), Total: end.Sub(begin)}
	return s, nil
}

// compatible refuses a snapshot that this host can't run, naming the field that differs, or saying why it has no engine for it.
func (h *Host) compatible(ctx context.Context, meta snapshot.Metadata, accel vmm.Accel) error {
	engine, err := h.engine(meta.Engine.Name, meta.Engine.Version)
	if err != nil {
		return &EngineError{err}
	}
	have, err := engine.Describe(ctx, meta.Arch, accel)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx) // the engine may be a good one
	case err != nil:
		return &EngineError{err}
	}
	return meta.Compatible(hostInfo(meta.Arch, have))
}

// EngineError says why this host has no engine for a snapshot: it is not installed, or runs no guest here.
type EngineError struct{ Err error }

func (e *EngineError) Error() string { return e.Err.Error() }

// Unwrap returns what keeps the engine from running.
func (e *EngineError) Unwrap() error { return e.Err }
