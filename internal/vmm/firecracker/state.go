package firecracker

import (
	"context"
	"fmt"
	"io"
	"os"
)

// maxState bounds the device state that a VMM may hand us; real ones are about 15 KB.
const maxState = 64 << 20

// wholeSlots is the version from which on differences of memory in several pieces are right.
var wholeSlots = version{major: 1, minor: 15}

// SaveState implements [vmm.Machine]. Firecracker saves memory along with the state; it is made to save only what was written since the last time.
func (m *Machine) SaveState(ctx context.Context) ([]byte, error) {
	request := snapshotCreate{Type: m.snapshotType(), State: fdPath(fdState), Memory: fdPath(fdSink)}
	if err := m.api.call(ctx, long, "PUT", "/snapshot/create", request, nil); err != nil {
		return nil, m.Explain(err)
	}
	state, err := readState(m.home.state)
	if err != nil {
		return nil, fmt.Errorf("reading the device state: %w", err)
	}
	m.memory.saved()
	return state, nil
}

// snapshotType is Full only where the memory that Firecracker writes is needed and its difference can't be trusted.
func (m *Machine) snapshotType() string {
	if _, needed := m.memory.(*tracked); needed && m.split && !m.version.atLeast(wholeSlots) {
		return snapshotFull
	}
	return snapshotDiff
}

func readState(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 || info.Size() > maxState {
		return nil, fmt.Errorf("%d bytes can't be right", info.Size())
	}
	return io.ReadAll(io.NewSectionReader(f, 0, info.Size()))
}
