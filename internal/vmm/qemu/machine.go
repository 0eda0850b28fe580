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
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/vmm"
)

// maxState bounds the device state that a VMM may hand us; real ones are about 10 KB.
const maxState = 64 << 20

// machine is one QEMU process.
type machine struct {
	cmd     *exec.Cmd
	pidfd   int // -1 where the kernel gave none
	monitor *monitor
	console *console
	agent   string // path of the socket behind the guest's agent port
	state   *os.File
	mapping mapping
	phases  vmm.Phases

	closed atomic.Bool
	done   chan struct{}
	err    error
	once   sync.Once
}

// start spawns QEMU as c says and returns when its CPUs run.
func start(ctx context.Context, binary string, c vmm.Config, hw hardware, tscKHz int64) (_ *machine, err error) {
	begin := time.Now()
	m := &machine{console: new(console), agent: filepath.Join(c.Dir, "agent"), done: make(chan struct{}), pidfd: -1}
	files, conn, err := m.channels(c)
	if err != nil {
		return nil, errors.Join(err, m.release())
	}
	m.cmd = exec.Command(binary, arguments(c, hw, tscKHz)...)
	m.cmd.ExtraFiles = files
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	m.cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	m.cmd.Dir = "/"
	m.cmd.SysProcAttr = nil
	m.cmd.WaitDelay = time.Second
	wait, err := launch(m.cmd, c.Paged)
	m.handedOver(files, c.Memory)
	if err != nil {
		conn.Close()
		return nil, errors.Join(err, m.release())
	}
	if fd, err := unix.PidfdOpen(m.cmd.Process.Pid, 0); err == nil {
		m.pidfd = fd
	}
	m.monitor = newMonitor(conn)
	go m.watch(wait)
	defer func() {
		if err != nil {
			err = m.explain(err)
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
	if m.mapping, err = findMapping(m.cmd.Process.Pid, c.Memory, c.MemoryBytes); err != nil {
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
	ours, theirs, err := socketPair("monitor")
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
	if m.state, err = memoryFile("device state", nil); err != nil {
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
		incoming, err := memoryFile("device state", c.State)
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

// watch notices the end of the process.
func (m *machine) watch(wait func() error) {
	err := wait()
	if m.closed.Load() {
		m.err = nil
	} else if err == nil {
		m.err = fmt.Errorf("%w: the guest has shut down%s", vmm.ErrDead, m.lastWords())
	} else {
		m.err = fmt.Errorf("%w: qemu: %w%s", vmm.ErrDead, err, m.lastWords())
	}
	close(m.done)
}

func (m *machine) lastWords() string {
	log := m.console.String()
	if log == "" {
		return ""
	}
	return "\nits last output:\n" + log
}

// explain adds the reason of a death to an error that is likely its consequence.
func (m *machine) explain(err error) error {
	if !errors.Is(err, vmm.ErrDead) {
		return err
	}
	select {
	case <-m.done:
		return m.err
	case <-time.After(time.Second):
		return err
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
	return m.explain(m.monitor.execute(ctx, "stop", nil, nil))
}

// Continue implements [vmm.Machine].
func (m *machine) Continue(ctx context.Context) error {
	return m.explain(m.monitor.execute(ctx, "cont", nil, nil))
}

// SaveState implements [vmm.Machine].
func (m *machine) SaveState(ctx context.Context) ([]byte, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", fdState)
	err := m.monitor.execute(ctx, "xen-save-devices-state", map[string]any{"filename": path, "live": false}, nil)
	if err != nil {
		return nil, m.explain(err)
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
func (m *machine) Dirty(context.Context) (*block.Set, error) {
	return dirtyPages(m.cmd.Process.Pid, m.mapping)
}

// ReadMemory implements [vmm.Machine].
func (m *machine) ReadMemory(p []byte, off int64) error {
	if size := int64(m.mapping.end - m.mapping.start); off < 0 || off > size || int64(len(p)) > size-off {
		return fmt.Errorf("reading guest memory: %d bytes at %d are outside of it", len(p), off)
	}
	return readMemory(m.cmd.Process.Pid, p, m.mapping.start+uint64(off))
}

// Done implements [vmm.Machine].
func (m *machine) Done() <-chan struct{} { return m.done }

// Err implements [vmm.Machine].
func (m *machine) Err() error {
	select {
	case <-m.done:
		return m.err
	default:
		return nil
	}
}

// Log implements [vmm.Machine].
func (m *machine) Log() string { return m.console.String() }

// PID implements [vmm.Machine].
func (m *machine) PID() int { return m.cmd.Process.Pid }

// Phases implements [vmm.Machine].
func (m *machine) Phases() vmm.Phases { return m.phases }

// Close implements [vmm.Machine].
func (m *machine) Close() error {
	var err error
	m.once.Do(func() {
		m.closed.Store(true)
		m.kill()
		<-m.done
		m.monitor.conn.Close()
		err = m.release()
	})
	return err
}

// kill ends the process by its pidfd, which can't hit another process that got the same number.
func (m *machine) kill() {
	if m.pidfd >= 0 {
		unix.PidfdSendSignal(m.pidfd, unix.SIGKILL, nil, 0)
		return
	}
	m.cmd.Process.Signal(syscall.SIGKILL)
}

// release frees what belongs to the machine besides its process.
func (m *machine) release() error {
	var errs []error
	if m.pidfd >= 0 {
		unix.Close(m.pidfd)
		m.pidfd = -1
	}
	if m.state != nil {
		errs = append(errs, m.state.Close())
	}
	if err := os.Remove(m.agent); !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
