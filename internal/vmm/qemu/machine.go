package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/cage"
	"github.com/sporevm/spore/internal/vmm/pagemap"
)

// maxState bounds the device state that a VMM may hand us; real ones are about 10 KB.
const maxState = 64 << 20

// machine is one QEMU process.
type machine struct {
	*cage.Process
	monitor *monitor
	agent   string // path of the socket behind the guest's agent port
	state   *os.File
	memory  *pagemap.Memory
	phases  vmm.Phases
	once    sync.Once
}

// start spawns QEMU as c says and returns when its CPUs run.
func start(ctx context.Context, binary string, c vmm.Config, hw hardware, tscKHz int64) (_ *machine, err error) {
	begin := time.Now()
	m := &machine{agent: filepath.Join(c.Dir, "agent")}
	files, conn, err := m.channels(c)
	if err != nil {
		return nil, errors.Join(err, m.release())
	}
	cmd := exec.Command(binary, arguments(c, hw, tscKHz)...)
	cmd.ExtraFiles = files
	m.Process, err = cage.Start(cmd, cage.Options{Name: "qemu", User: cage.Unprivileged(), Paged: c.Paged})
	m.handedOver(files, c.Memory)
	if err != nil {
		conn.Close()
		return nil, errors.Join(err, m.release())
	}
	m.monitor = newMonitor(conn)
	defer func() {
		if err != nil {
			err = m.Explain(err)
			m.Close()
		}
	}()

	if err := m.monitor.open(ctx); err != nil {
		return nil, err
	}
	spawned := time.Now()
	if err := m.monitor.waitRunning(ctx); err != nil {
		return nil, err
	}
	m.phases = vmm.Phases{Spawn: spawned.Sub(begin), Load: time.Since(spawned)}
	if m.memory, err = pagemap.OfFile(m.PID(), c.Memory, c.MemoryBytes); err != nil {
		return nil, err
	}
	return m, nil
}

// channels makes what connects us to the VMM. The files are in the order of the fd constants; conn is our end of the monitor.
func (m *machine) channels(c vmm.Config) (files []*os.File, conn net.Conn, err error) {
	defer func() {
		if err != nil {
			m.handedOver(files, c.Memory)
		}
	}()
	ours, theirs, err := cage.SocketPair("monitor")
	if err != nil {
		return nil, nil, err
	}
	defer ours.Close()
	files = append(files, theirs)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.agent, Net: "unix"})
	if err != nil {
		return files, nil, fmt.Errorf("listening for the agent: %w", err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false) // QEMU goes on listening
	agent, err := listener.File()
	if err != nil {
		return files, nil, fmt.Errorf("listening for the agent: %w", err)
	}
	files = append(files, agent)
	if m.state, err = cage.MemoryFile("device state", nil); err != nil {
		return files, nil, err
	}
	files = append(files, c.Memory, m.state, c.Disk) // a nil file leaves its descriptor closed
	var tap *os.File
	if c.Network == vmm.NetTap {
		if tap, err = c.Tap.Open(); err != nil {
			return files, nil, fmt.Errorf("attaching to the network: %w", err)
		}
	}
	files = append(files, tap)
	if c.State != nil {
		incoming, err := cage.MemoryFile("device state", c.State)
		if err != nil {
			return files, nil, err
		}
		files = append(files, incoming)
	} else {
		// By descriptor, since the VMM's user may not be able to reach the folders that they are in.
		files = append(files, nil)
		for _, path := range []string{c.Boot.Kernel, c.Boot.Initramfs} {
			f, err := os.Open(path)
			if err != nil {
				return files, nil, err
			}
			files = append(files, f)
		}
	}
	if conn, err = net.FileConn(ours); err != nil {
		return files, nil, fmt.Errorf("opening the monitor channel: %w", err)
	}
	return files, conn, nil
}

// handedOver closes our copies of what only the VMM needs from now on.
func (m *machine) handedOver(files []*os.File, memory *os.File) {
	for _, f := range files {
		if f != nil && f != m.state && f != memory {
			f.Close()
		}
	}
}

// Dial implements [vmm.Machine].
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", m.agent)
	if err != nil {
		return nil, fmt.Errorf("connecting to the guest's agent: %w", err)
	}
	return conn, nil
}

// Stop implements [vmm.Machine].
func (m *machine) Stop(ctx context.Context) error {
	return m.Explain(m.monitor.execute(ctx, "stop", nil, nil))
}

// Continue implements [vmm.Machine].
func (m *machine) Continue(ctx context.Context) error {
	return m.Explain(m.monitor.execute(ctx, "cont", nil, nil))
}

// SaveState implements [vmm.Machine].
func (m *machine) SaveState(ctx context.Context) ([]byte, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", fdState)
	err := m.monitor.execute(ctx, "xen-save-devices-state", map[string]any{"filename": path, "live": false}, nil)
	if err != nil {
		return nil, m.Explain(err)
	}
	info, err := m.state.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the device state: %w", err)
	}
	if info.Size() == 0 || info.Size() > maxState {
		return nil, fmt.Errorf("reading the device state: %d bytes can't be right", info.Size())
	}
	state, err := io.ReadAll(io.NewSectionReader(m.state, 0, info.Size()))
	if err != nil {
		return nil, fmt.Errorf("reading the device state: %w", err)
	}
	return state, nil
}

// Dirty implements [vmm.Machine].
func (m *machine) Dirty(context.Context) (*block.Set, error) { return m.memory.Dirty() }

// ReadMemory implements [vmm.Machine].
func (m *machine) ReadMemory(p []byte, off int64) error { return m.memory.Read(p, off) }

// Phases implements [vmm.Machine].
func (m *machine) Phases() vmm.Phases { return m.phases }

// Close implements [vmm.Machine].
func (m *machine) Close() error {
	var err error
	m.once.Do(func() {
		m.End()
		m.monitor.conn.Close()
		err = m.release()
	})
	return err
}

// release frees what belongs to the machine besides its process.
func (m *machine) release() error {
	var errs []error
	if m.state != nil {
		errs = append(errs, m.state.Close())
	}
	if err := os.Remove(m.agent); !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
