package farmemory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

// Servers starts the processes that serve memory. Machines of one memory that wake while others of it run share its server, and so the kernel's cache of
// what it served.
type Servers struct {
	// Command returns the command that runs [Serve] on the descriptor SocketFD.
	Command func() *exec.Cmd

	mu      sync.Mutex
	running map[block.Digest]*process
}

// Options say how memory is served.
type Options struct {
	Prefetch bool // fetch what is known to be touched before it is
	Record   bool // keep account of what is touched; such a server is not shared
	// Failed is called, once at most, when the memory can't be served any more. It must not wait for the machine, which waits for the memory.
	Failed func(error)
}

// Memory is one machine's hold on a server.
type Memory struct {
	owner  *Servers
	server *process
	file   *os.File
	failed func(error)
	once   sync.Once
}

// Open serves the memory of a snapshot, which must stay open until Close. The error wraps errors.ErrUnsupported where this host can't: it takes FUSE, and
// the right to mount.
func (o *Servers) Open(ctx context.Context, s *snapshot.Snapshot, options Options) (*Memory, error) {
	if s.Memory() == nil {
		return nil, fmt.Errorf("snapshot %s is a disk alone: it has no memory", s.ID())
	}
	m := &Memory{owner: o, failed: options.Failed}
	var err error
	if options.Record {
		m.server, err = o.start(ctx, s, options)
	} else {
		m.server, err = o.shared(ctx, s, options)
	}
	if err != nil {
		return nil, fmt.Errorf("serving the memory of snapshot %s: %w", s.ID(), err)
	}
	fd, err := unix.FcntlInt(uintptr(m.server.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serving the memory of snapshot %s: %w", s.ID(), err), m.Close())
	}
	m.file = os.NewFile(uintptr(fd), fileName)
	m.server.join(m)
	return m, nil
}

// shared returns the server of a memory, with one user more.
func (o *Servers) shared(ctx context.Context, s *snapshot.Snapshot, options Options) (*process, error) {
	key := s.Metadata().Artifacts[snapshot.MemoryHeader].Digest
	o.mu.Lock()
	defer o.mu.Unlock() // those who want the same memory wait, and have it
	if p := o.running[key]; p != nil && p.alive() {
		p.users++
		return p, nil
	}
	p, err := o.start(ctx, s, options)
	if err != nil {
		return nil, err
	}
	if o.running == nil {
		o.running = map[block.Digest]*process{}
	}
	p.key = key
	o.running[key] = p
	return p, nil
}

// leave ends a server with its last user.
func (o *Servers) leave(p *process) error {
	o.mu.Lock()
	p.users--
	last := p.users == 0
	if last && o.running[p.key] == p {
		delete(o.running, p.key)
	}
	o.mu.Unlock()
	if last {
		return p.end()
	}
	return nil
}

// File is the memory, to be mapped privately. It must not be written to, and is closed by Close.
func (m *Memory) File() *os.File { return m.file }

// Pages returns the pages that were touched, in order, of a memory that keeps account.
func (m *Memory) Pages(ctx context.Context) (snapshot.Pages, error) {
	m.server.tell(askPages)
	select {
	case pages := <-m.server.pages:
		return pages, nil
	case <-m.server.gone:
		return nil, errors.New("asking what memory was touched: its server has ended")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Server is the process id of the server, for tests and measurements.
func (m *Memory) Server() int { return m.server.cmd.Process.Pid }

// Close lets go of the memory. Whoever has it mapped is ended by the kernel when touching a page that was not there yet.
func (m *Memory) Close() error {
	var err error
	m.once.Do(func() {
		m.server.part(m)
		if m.file != nil {
			err = m.file.Close()
		}
		err = errors.Join(err, m.owner.leave(m.server))
	})
	return err
}
