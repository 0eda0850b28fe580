package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sporevm/spore/internal/guest/api"
	"golang.org/x/sys/unix"
)

const (
	quiesceTimeout = 30 * time.Second

	// linux/fs.h; x/sys does not have them.
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Quiesce makes the guest stand still for a snapshot: no user process runs, everything written is on the disk, and the root file system takes no
// more writes if o asks for that. Only Wake ends it. A failure leaves the guest running as before.
func (m *Machine) Quiesce(ctx context.Context, o api.QuiesceOptions) (api.QuiesceReport, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	start := time.Now()
	limit := time.Duration(o.Timeout)
	if limit <= 0 {
		limit = quiesceTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	m.settle()
	var r api.QuiesceReport
	if err := m.user.Freeze(ctx); err != nil {
		return r, err
	}
	m.frozen = true
	r.FreezeTime = int64(time.Since(start))
	err := m.still(ctx, o, &r)
	if err != nil {
		return r, errors.Join(err, m.release())
	}
	r.Duration = int64(time.Since(start))
	return r, nil
}

// still does what a quiesce does once the processes are frozen.
func (m *Machine) still(ctx context.Context, o api.QuiesceOptions, r *api.QuiesceReport) (err error) {
	pids, err := m.user.PIDs()
	if err != nil {
		return err
	}
	r.Frozen, r.Processes = len(pids), describe(pids)
	synced := time.Now()
	unix.Sync()
	r.SyncTime = int64(time.Since(synced))
	if o.FreezeFilesystem && !m.blocked {
		if err := unix.IoctlSetInt(int(m.root.Fd()), fiFreeze, 0); err != nil {
			return fmt.Errorf("freezing the root file system: %w", err)
		}
		m.blocked = true
	}
	if o.DropCaches || o.Compact {
		if err := giveBack(ctx, o); err != nil {
			return err
		}
	}
	memory, err := readMemory()
	if err != nil {
		return err
	}
	r.MemTotal, r.MemFree, r.MemUsed = memory.total, memory.free, memory.total-memory.free
	return nil
}

// thawDelay keeps the thaw of the file system out of the way of the answer to a wake. A process that writes in the meantime waits.
const thawDelay = 2 * time.Millisecond

// release undoes a quiesce. The file system comes last and later: thawing it writes to the disk, which takes a guest under emulation as long as half of
// all else in a wake, and nobody but a writer has to wait for that.
func (m *Machine) release() error {
	if m.frozen {
		if err := m.user.Thaw(); err != nil {
			return err
		}
		m.frozen = false
	}
	if m.blocked && m.thawing == nil {
		done := make(chan struct{})
		m.thawing = done
		time.AfterFunc(thawDelay, func() {
			defer close(done)
			err := unix.IoctlSetInt(int(m.root.Fd()), fiThaw, 0)
			if err != nil && err != unix.EINVAL { // it is not frozen: a user may thaw it too
				m.o.Fatal(fmt.Errorf("thawing the root file system: %w", err))
			}
		})
	}
	return nil
}

// settle waits for the end of a thaw. m.mu is held.
func (m *Machine) settle() {
	if m.thawing == nil {
		return
	}
	<-m.thawing
	m.thawing, m.blocked = nil, false
}
