package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/vmm"
)

// Create makes a machine from an image or from another snapshot's disk, runs its steps, starts its command, waits until it is ready, and freezes it.
func (h *Host) Create(ctx context.Context, spec CreateSpec, p Progress) (_ *snapshot.Snapshot, err error) {
	if err := spec.Check(); err != nil {
		return nil, err
	}
	if spec.ID == uuid.Nil {
		spec.ID = uuid.New()
	} else if err := h.mustBeNew(ctx, spec.ID); err != nil {
		return nil, err
	}
	disk, meta, err := h.foundation(ctx, spec, p)
	if err != nil {
		return nil, err
	}
	disk, meta, err = h.runSteps(ctx, disk, meta, spec, p)
	defer func() { err = errors.Join(err, disk.Close()) }()
	if err != nil {
		return nil, err
	}
	p.Phase("boot")
	s, err := h.boot(ctx, disk, meta, spec)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.startAndWait(ctx, spec.ReadyTimeout, p); err != nil {
		return nil, err
	}
	snap, _, err := s.Pause(ctx, PauseSpec{ID: spec.ID, Names: spec.Names, Labels: spec.Labels}, p)
	if err == nil && !spec.NoPrefetch {
		h.learn(ctx, snap, p)
	}
	return snap, err
}

// mustBeNew refuses an id that is taken before any work is done for it.
func (h *Host) mustBeNew(ctx context.Context, id uuid.UUID) error {
	taken, err := h.Snapshots.OpenID(ctx, id)
	var missing *snapshot.NotFoundError
	switch {
	case err == nil:
		taken.Close()
		return fmt.Errorf("%w: %s; snapshots never change, choose another id", store.ErrExist, id)
	case errors.As(err, &missing):
		return nil
	}
	return err
}

// foundation returns the disk-only snapshot, or the snapshot named by From, that the machine's disk starts as, and the metadata that the machine starts with.
func (h *Host) foundation(ctx context.Context, spec CreateSpec, p Progress) (*snapshot.Snapshot, snapshot.Metadata, error) {
	var disk *snapshot.Snapshot
	var err error
	if spec.From != "" {
		disk, err = h.Snapshots.Open(ctx, spec.From)
	} else {
		disk, err = h.imageDisk(ctx, spec, p)
	}
	if err != nil {
		return nil, snapshot.Metadata{}, err
	}
	meta, err := h.machineMetadata(ctx, *disk.Metadata(), spec)
	if err != nil {
		return nil, meta, errors.Join(err, disk.Close())
	}
	return disk, meta, nil
}

// machineMetadata describes the machine that is to boot on a disk.
func (h *Host) machineMetadata(ctx context.Context, meta snapshot.Metadata, spec CreateSpec) (snapshot.Metadata, error) {
	if spec.From != "" && spec.Arch != "" && spec.Arch != meta.Arch {
		return meta, fmt.Errorf("snapshot %s is for %s, not for %s", meta.ID, meta.Arch, spec.Arch)
	}
	accel, err := vmm.ParseAccel(spec.Accel)
	if err != nil {
		return meta, err
	}
	engine, err := h.Engine.Describe(ctx, meta.Arch, accel)
	if err != nil {
		return meta, err
	}
	net, err := vmm.ParseNetwork(spec.Net)
	if err != nil {
		return meta, err
	}
	describe(&meta, engine)
	meta.VCPUs, meta.MemoryBytes, meta.Net = spec.CPUs, spec.MemoryBytes, string(net)
	if spec.StartCommand != "" || spec.ReadyCommand != "" {
		meta.StartCommand, meta.ReadyCommand = spec.StartCommand, spec.ReadyCommand
	}
	return meta, nil
}
