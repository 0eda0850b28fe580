package firecracker

import (
	"context"
	"errors"
	"fmt"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/pagemap"
)

// load thaws a machine and lets its CPUs run.
func (m *Machine) load(ctx context.Context, c vmm.Config, tracked bool) error {
	request, err := loadRequest(m.version, c)
	if err != nil {
		return err
	}
	if err := m.api.call(ctx, long, "PUT", "/snapshot/load", request, nil); err != nil {
		var refusal *APIError
		if errors.As(err, &refusal) {
			// Firecracker ends itself after a load that failed.
			return fmt.Errorf("%w: %w", vmm.ErrDead, err)
		}
		return err
	}
	// Before the guest runs: it may give memory back at once.
	if err := m.findMemory(c, tracked); err != nil {
		return err
	}
	return m.api.call(ctx, long, "PATCH", "/vm", vmState{stateResumed}, nil)
}

// loadRequest says what to load, in the words of a version.
func loadRequest(v version, c vmm.Config) (snapshotLoad, error) {
	r := snapshotLoad{State: fdPath(fdIncoming), Memory: memoryBackend{backendFile, fdPath(fdMemory)}}
	if c.Uffd != "" {
		r.Memory = memoryBackend{backendUffd, fdPath(fdUffd)}
	}
	if v.need(trackDirtyPages) == nil {
		r.Track = true
	} else {
		r.TrackOld = true
	}
	if v.need(vsockOverride) == nil { // else the state's own path has to do, which is the same unless another program has made it
		r.Vsock = &vsockOverrideTo{homePath(vsockSocket)}
	}
	if c.Tap != nil {
		if err := v.need(networkOverrides); err != nil {
			return r, fmt.Errorf("waking a machine on the tap device %s: %w", c.Tap.Name(), err)
		}
		r.Interfaces = []networkOverride{{interfaceID, c.Tap.Name()}}
	}
	return r, nil
}

func (m *Machine) findMemory(c vmm.Config, tracked bool) (err error) {
	if tracked {
		m.memory, err = newTracked(m.home.sink, c)
		return err
	}
	var found *pagemap.Memory
	if c.Uffd != "" {
		found, err = pagemap.OfUserfault(m.PID(), c.MemoryBytes)
	} else {
		found, err = pagemap.OfFile(m.PID(), c.Memory, c.MemoryBytes)
	}
	if err != nil {
		return err
	}
	m.memory = mapped{found, m.home.sink}
	return nil
}
