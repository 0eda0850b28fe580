package sandbox

import (
	"context"
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// rigged is QEMU with somebody in the way.
type rigged struct {
	vmm.Engine
	describe func(*vmm.Description)               // changes what the host seems to be
	before   func(op string, m vmm.Machine) error // called before each operation of a machine, which fails with its error
}

func rig(before func(op string, m vmm.Machine) error) *rigged {
	return &rigged{Engine: qemu.New(lab.cache()), before: before}
}

// errNothing makes Dirty find nothing, as the kernel has it for a process that dies while it is looked at.
var errNothing = errors.New("nothing")

// killBefore kills the VMM before an operation.
func killBefore(t *testing.T, op string) *rigged {
	lab.need(t)
	return rig(func(now string, m vmm.Machine) error {
		if now != op {
			return nil
		}
		return unix.Kill(m.PID(), unix.SIGKILL)
	})
}

func (r *rigged) Describe(ctx context.Context, arch string, accel vmm.Accel) (vmm.Description, error) {
	d, err := r.Engine.Describe(ctx, arch, accel)
	if err == nil && r.describe != nil {
		r.describe(&d)
	}
	return d, err
}

func (r *rigged) Start(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
	m, err := r.Engine.Start(ctx, c)
	if err != nil || r.before == nil {
		return m, err
	}
	return &riggedMachine{m, r.before}, nil
}

type riggedMachine struct {
	vmm.Machine
	before func(op string, m vmm.Machine) error
}

func (m *riggedMachine) Dial(ctx context.Context) (net.Conn, error) {
	if err := m.before("dial", m.Machine); err != nil {
		return nil, err
	}
	return m.Machine.Dial(ctx)
}

func (m *riggedMachine) Stop(ctx context.Context) error {
	if err := m.before("stop", m.Machine); err != nil {
		return err
	}
	return m.Machine.Stop(ctx)
}

func (m *riggedMachine) Continue(ctx context.Context) error {
	if err := m.before("continue", m.Machine); err != nil {
		return err
	}
	return m.Machine.Continue(ctx)
}

func (m *riggedMachine) SaveState(ctx context.Context) ([]byte, error) {
	if err := m.before("state", m.Machine); err != nil {
		return nil, err
	}
	return m.Machine.SaveState(ctx)
}

func (m *riggedMachine) Dirty(ctx context.Context) (*block.Set, error) {
	if err := m.before("dirty", m.Machine); err != nil {
		return nil, err
	}
	dirty, err := m.Machine.Dirty(ctx)
	if err := m.before("dirty found", m.Machine); errors.Is(err, errNothing) {
		return new(block.Set), nil
	}
	return dirty, err
}

func (m *riggedMachine) ReadMemory(p []byte, off int64) error {
	if err := m.before("read", m.Machine); err != nil {
		return err
	}
	return m.Machine.ReadMemory(p, off)
}
