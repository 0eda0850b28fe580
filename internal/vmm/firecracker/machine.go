package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/cage"
)

// Machine is one Firecracker process. It implements [vmm.Machine].
type Machine struct {
	*cage.Process
	home    *home
	release func() error // gives back what the jail took
	api     *client
	version version
	memory  guestMemory
	split   bool // memory is in several pieces
	metrics *metrics
	readers sync.WaitGroup // of the pipes
	phases  vmm.Phases
	once    sync.Once
}

// start spawns Firecracker and returns when the guest's CPUs run.
func (e *Engine) start(ctx context.Context, f facts, c vmm.Config) (_ *Machine, err error) {
	begin := time.Now()
	m := &Machine{version: f.version, split: splits(c), metrics: newMetrics(), release: func() error { return nil }}
	if err := m.spawn(ctx, e, f, c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = m.Explain(err)
			m.Close()
		}
	}()
	if err := m.waitForAPI(ctx); err != nil {
		return nil, err
	}
	spawned := time.Now()
	tracked := e.readable(m.PID()) != nil || m.split && (c.Boot != nil || c.Uffd != "")
	if c.Boot != nil {
		err = m.boot(ctx, c, tracked)
	} else {
		err = m.load(ctx, c, tracked)
	}
	if err != nil {
		return nil, err
	}
	m.phases = vmm.Phases{Spawn: spawned.Sub(begin), Load: time.Since(spawned)}
	return m, nil
}

// spawn starts the process. Its home is a folder in the machine's own or, if it gets a jail, the jail.
func (m *Machine) spawn(ctx context.Context, e *Engine, f facts, c vmm.Config) (err error) {
	if e.jail != nil {
		return m.spawnJailed(ctx, e.jail, f, c)
	}
	who := unprivileged()
	if c.Uffd != "" {
		err = hostUserfaults().allow(who)
	}
	if err != nil {
		if c.Disk != nil {
			c.Disk.Close()
		}
		return err
	}
	if m.home, err = newHome(filepath.Join(c.Dir, homeName), who); err != nil {
		if c.Disk != nil {
			c.Disk.Close()
		}
		return err
	}
	files, err := m.home.files(f.path, c)
	if err == nil {
		cmd := exec.Command(fdPath(fdBinary), arguments(c.Name)...)
		cmd.Args[0] = "firecracker"
		cmd.ExtraFiles = files
		m.Process, err = cage.Start(cmd, cage.Options{Name: "firecracker", User: who, NetNS: netns(c)})
	}
	m.home.handedOver(files, c.Memory)
	if err != nil {
		return errors.Join(err, m.home.close())
	}
	m.spawned()
	return nil
}

// spawned sets up what belongs to a live process.
func (m *Machine) spawned() {
	m.api = newClient(func(ctx context.Context) (net.Conn, error) { return m.home.dial(ctx, apiSocket, m.PID()) })
	m.readers.Go(func() {
		for lines := bufio.NewReader(m.home.log); ; {
			line, err := lines.ReadSlice('\n') // a line that is too long comes in pieces
			if len(line) > 0 {
				m.Print(line)
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
		}
	})
	m.readers.Go(func() { m.metrics.read(m.home.metrics) })
}

// arguments returns Firecracker's own, which are the same in a jail and outside.
func arguments(name string) []string {
	return []string{
		"--id", instanceID(name), "--api-sock", homePath(apiSocket),
		"--log-path", homePath(logPipe), "--level", "Warning", "--metrics-path", homePath(metricsPipe),
	}
}

// instanceID makes an id of a name: letters, digits and dashes, 64 at most.
func instanceID(name string) string {
	id := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name)
	return id[:min(len(id), 64)]
}

// netns is the path of the network namespace that the machine's tap interface is in. The namespace may have no name: then its file is its path.
func netns(c vmm.Config) string {
	if c.Tap == nil || c.Tap.Namespace() == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.Tap.Namespace().Fd())
}

// unprivileged returns whom a VMM without a jail runs as: nobody in particular when we are root, and ourselves where only root may open KVM.
func unprivileged() *syscall.Credential {
	who := cage.Unprivileged()
	var st unix.Stat_t
	if who == nil || unix.Stat("/dev/kvm", &st) != nil || st.Mode&0o006 == 0o006 || len(who.Groups) > 0 {
		return who
	}
	return nil
}

// waitForAPI returns when Firecracker answers. It makes its socket in the first milliseconds.
func (m *Machine) waitForAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, quick, fmt.Errorf("firecracker did not open its API in %v", quick))
	defer cancel()
	for {
		conn, err := m.home.dial(ctx, apiSocket, m.PID())
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-m.Done():
			return fmt.Errorf("waiting for Firecracker's API: %w", vmm.ErrDead)
		case <-ctx.Done():
			return fmt.Errorf("waiting for Firecracker's API: %w", context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
	var answer versionAnswer
	if err := m.api.call(ctx, quick, "GET", "/version", nil, &answer); err != nil {
		return err
	}
	if answer.Version != m.version.String() {
		return fmt.Errorf("firecracker says that it is version %.64q, and said before that it was %s", answer.Version, m.version)
	}
	return nil
}

// agentPort is the vsock port that the guest's agent listens on; it learns of it from the kernel's command line.
const agentPort = 1024

// Dial implements [vmm.Machine].
func (m *Machine) Dial(ctx context.Context) (net.Conn, error) { return m.DialPort(ctx, agentPort) }

// DialPort connects to a vsock port of the guest. An agent that does not listen yet is waited for.
func (m *Machine) DialPort(ctx context.Context, port uint32) (net.Conn, error) {
	for {
		conn, err := m.dialOnce(ctx, port)
		if err == nil {
			return conn, nil
		}
		select {
		case <-m.Done():
			return nil, fmt.Errorf("connecting to port %d of the guest: %w", port, vmm.ErrDead)
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to port %d of the guest: %w: %w", port, context.Cause(ctx), err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// dialOnce asks Firecracker for a connection; it closes the stream where nobody listens.
func (m *Machine) dialOnce(ctx context.Context, port uint32) (_ net.Conn, err error) {
	conn, err := m.home.dial(ctx, vsockSocket, m.PID())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			conn.Close()
		}
	}()
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return nil, err
	}
	// Byte by byte: what follows the line is the guest's.
	var line []byte
	for b := make([]byte, 1); len(line) < 32; line = append(line, b[0]) {
		if _, err := io.ReadFull(conn, b); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			break
		}
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return nil, fmt.Errorf("firecracker answers %q", line)
	}
	return conn, nil
}

// Stop implements [vmm.Machine].
func (m *Machine) Stop(ctx context.Context) error {
	return m.Explain(m.api.patch(ctx, "/vm", vmState{statePaused}))
}

// Continue implements [vmm.Machine].
func (m *Machine) Continue(ctx context.Context) error {
	m.memory.resumed()
	return m.Explain(m.api.patch(ctx, "/vm", vmState{stateResumed}))
}

// Dirty implements [vmm.Machine]. For a machine whose page map can't be read it is what SaveState has found.
func (m *Machine) Dirty(context.Context) (*block.Set, error) { return m.memory.Dirty() }

// ReadMemory implements [vmm.Machine].
func (m *Machine) ReadMemory(p []byte, off int64) error { return m.memory.Read(p, off) }

// Phases implements [vmm.Machine].
func (m *Machine) Phases() vmm.Phases { return m.phases }

// Close implements [vmm.Machine].
func (m *Machine) Close() error {
	var err error
	m.once.Do(func() {
		m.End()
		m.api.close()
		for _, pipe := range []*os.File{m.home.log, m.home.metrics} {
			pipe.SetReadDeadline(time.Unix(1, 0)) // what is in them has been read or is not of interest
		}
		m.readers.Wait()
		if m.memory != nil {
			err = m.memory.Close()
		}
		err = errors.Join(err, m.home.close(), m.release())
	})
	return err
}
