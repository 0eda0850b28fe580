package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// Phases are the durations of a resume, in their order. Total runs from the call to the agent's answer.
type Phases struct {
	Open   time.Duration `json:"open"`   // reading and checking the snapshot's description
	Memory time.Duration `json:"memory"` // laying the memory out flat; next to nothing when the host has done it before
	Spawn  time.Duration `json:"spawn"`  // VMM's process start to its control channel
	Load   time.Duration `json:"load"`   // device state loaded, CPUs running
	Wake   time.Duration `json:"wake"`   // identity handed over and confirmed
	Total  time.Duration `json:"total"`
}

const (
	// deathDelay is how long after its last byte a dying VMM is given to be gone. On a busy host that is not at once.
	deathDelay = 10 * time.Second
	// reasonDelay is how long after a death its reason is waited for, where somebody else may tell it.
	reasonDelay = 2 * time.Second
)

// Sandbox is a running machine, its disk, its agent and its identity. Its methods are safe for concurrent use.
type Sandbox struct {
	host    *Host
	id      uuid.UUID
	dir     *workDir
	machine vmm.Machine
	disk    *disk
	memory  *os.File    // mapped by the machine; one that was laid out carries the lock that keeps the cache from dropping it
	lazy    *lazyMemory // serves memory, where that is not a plain file
	pages   *served     // serves memory by userfaultfd; nil: nobody does
	ahead   func()      // ends the fetching ahead of the disk; nil: there is none
	noted   *noted      // keeps account of what is read of the disk; nil: nobody asked
	user    vmm.User    // whom the VMM runs as, where that had to be known before it started
	phases  Phases
	slot    *network.Slot  // nil: the machine has no tap interface
	policy  network.Policy // what it may reach by that

	session sync.RWMutex  // guards client; held while the guest has no session, so that who asks for one waits for the next
	client  *guest.Client // nil when there will be none any more

	mu     sync.Mutex // held while the machine is frozen, thawed or closed
	epoch  uint64
	meta   snapshot.Metadata  // what a snapshot taken now would say
	parent *snapshot.Snapshot // what a snapshot taken now would be a child of
	before io.ReaderAt        // the parent's memory; nil for a machine that booted, whose memory has no parent
	own    *snapshot.Snapshot // parent, where the sandbox itself opened it
	held   bool               // its CPUs stand still, see Hold
	closed bool

	faultMu sync.Mutex // guards fault, and machine until it is set
	fault   error      // why the machine was ended by us, if it was
}

// ID is the sandbox's identity: no other sandbox has it, whatever snapshot they share.
func (s *Sandbox) ID() uuid.UUID { return s.id }

// Snapshot is what the sandbox was last frozen as or woken from. It is open for as long as the sandbox.
func (s *Sandbox) Snapshot() *snapshot.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parent
}

// Phases tells how long the parts of the start took.
func (s *Sandbox) Phases() Phases { return s.phases }

// VMM is the process id of the machine's monitor, for measurements.
func (s *Sandbox) VMM() int { return s.machine.PID() }

// Measure returns what the machine's monitor has measured, see [vmm.Measured]; nil if it is of a kind that measures nothing.
func (s *Sandbox) Measure(ctx context.Context) (map[string]float64, error) {
	m, ok := s.machine.(vmm.Measured)
	if !ok {
		return nil, nil
	}
	return m.Measure(ctx)
}

// Agent is the session with the guest. It ends when the sandbox is paused; a sandbox that goes on has a new one, and one that does not has none: nil. While
// the guest stands still Agent waits.
func (s *Sandbox) Agent() *guest.Client {
	s.session.RLock()
	defer s.session.RUnlock()
	return s.client
}

// Log is the end of what the guest's console and the VMM have printed.
func (s *Sandbox) Log() string { return s.machine.Log() }

// Done is closed when the machine has ended, for whatever reason; Err then says why.
func (s *Sandbox) Done() <-chan struct{} { return s.machine.Done() }

// Err tells why the machine ended, or nil while it runs and after Close.
func (s *Sandbox) Err() error {
	s.faultMu.Lock()
	defer s.faultMu.Unlock()
	if s.fault != nil {
		return s.fault
	}
	if s.machine == nil {
		return nil
	}
	err := s.machine.Err()
	s.faultMu.Unlock()
	s.awaitMemory(err)
	s.faultMu.Lock()
	if s.fault != nil {
		return s.fault
	}
	return err
}

// fail ends the machine because what it stands on is broken: it must not go on with wrong or missing data.
func (s *Sandbox) fail(reason error) {
	s.faultMu.Lock()
	first, machine := s.fault == nil, s.machine
	if first {
		s.fault = reason
	}
	s.faultMu.Unlock()
	if first {
		s.host.Log.Error("ending the machine", "sandbox", s.id, "reason", reason)
	}
	if machine != nil {
		s.end(machine)
	}
}

// end ends the machine. One that waits for memory from afar can't be ended before that comes, or can't any more.
func (s *Sandbox) end(machine vmm.Machine) error {
	if s.lazy != nil {
		defer time.AfterFunc(farPatience, func() { s.lazy.Close() }).Stop()
	}
	return machine.Close()
}

// diskFailed is fail for faults of the disk.
func (s *Sandbox) diskFailed(fault error) {
	if errors.Is(fault, unix.ENOSPC) || errors.Is(fault, unix.EDQUOT) {
		fault = fmt.Errorf("%w: the host has no room for what the guest writes; free some in %s, or use another cache folder", fault, s.host.scratch())
	}
	s.fail(fault)
}

// Close ends the sandbox without keeping anything of it. It may be called more than once.
func (s *Sandbox) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.client != nil {
		s.client.Close() // how the session ends does not matter any more
	}
	if s.machine != nil {
		errs = append(errs, s.end(s.machine))
	}
	if s.disk != nil {
		errs = append(errs, s.disk.close())
	}
	if s.slot != nil {
		errs = append(errs, s.slot.Release())
	}
	if s.pages != nil {
		if err := s.host.Pages.Release(s.id.String()); err != nil { // the sandbox is gone all the same
			s.host.Log.Warn("a page server did not let go of a sandbox in good order", "sandbox", s.id, "error", err)
		}
	}
	if s.lazy != nil {
		errs = append(errs, s.lazy.Close())
	} else if s.memory != nil {
		errs = append(errs, s.memory.Close())
	}
	if s.ahead != nil {
		s.ahead()
	}
	if s.own != nil {
		errs = append(errs, s.own.Close())
	}
	if s.user != nil {
		errs = append(errs, s.user.Close())
	}
	if s.dir != nil {
		errs = append(errs, s.dir.remove())
	}
	return errors.Join(errs...)
}

// start makes the machine's disk and process. Exactly one of c.Boot and c.State is set; c.Memory is s.memory.
func (s *Sandbox) start(ctx context.Context, c vmm.Config) error {
	h := s.host
	var err error
	if s.dir, err = newRunDir(h.RunDir); err != nil {
		return err
	}
	engine, err := h.engine(s.meta.Engine.Name, s.meta.Engine.Version)
	if err != nil {
		return err
	}
	var below expose.Base = s.parent.Disk()
	if s.noted != nil {
		below = s.noted
	}
	if s.disk, c.Disk, err = newDisk(s.parent.Disk(), below, h.scratch(), vmm.NeedsOf(engine).DiskFile, s.diskFailed); err != nil {
		return err
	}
	c.DiskTree, c.User = s.disk.tree, s.user
	c.Name, c.Dir, c.Memory, c.Paged = "spore-"+s.id.String()[:8], s.dir.path, s.memory, s.lazy != nil
	if s.pages != nil {
		c.Uffd = s.pages.socket
	}
	if err := s.attach(&c); err != nil {
		return err
	}
	machine, err := engine.Start(ctx, c)
	if err != nil {
		return errors.Join(err, s.disk.firstFault(), s.memoryFault(err))
	}
	s.faultMu.Lock()
	s.machine = machine
	fault := s.fault
	s.faultMu.Unlock()
	if fault != nil { // while it started: fail had no machine to end
		return fault
	}
	about, err := s.about()
	if err == nil {
		err = s.dir.record(machine.PID(), about)
	}
	if err != nil {
		return fmt.Errorf("recording the VMM's process: %w", err)
	}
	return nil
}

// connect opens a session with the guest and makes it somebody.
func (s *Sandbox) connect(ctx context.Context) error {
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	conn, err := s.machine.Dial(ctx)
	if err != nil {
		return s.explain(ctx, err)
	}
	client := guest.NewClient(conn)
	if err := s.wake(ctx, client); err != nil {
		client.Close()
		return s.explain(ctx, err)
	}
	s.client = client
	return nil
}

// wake hands the guest its next identity: until it has confirmed that one, no user process runs.
func (s *Sandbox) wake(ctx context.Context, client *guest.Client) error {
	return s.hand(ctx, client.Wake)
}

// hand hands the guest its next identity in the given way.
func (s *Sandbox) hand(ctx context.Context, way func(context.Context, api.Identity) (api.WakeReport, error)) error {
	identity, err := s.nextIdentity()
	if err != nil {
		return err
	}
	report, err := way(ctx, identity)
	if err != nil {
		return fmt.Errorf("handing the guest its identity: %w", err)
	}
	if report.Generation != identity.Generation || report.Epoch != identity.Epoch {
		return fmt.Errorf("handing the guest its identity: it confirms generation %s, not %s", report.Generation, identity.Generation)
	}
	s.epoch, s.meta.Agent = identity.Epoch, report.AgentVersion
	return nil
}

func (s *Sandbox) nextIdentity() (api.Identity, error) {
	entropy, err := newEntropy()
	if err != nil {
		return api.Identity{}, err
	}
	id := s.id
	identity := api.Identity{
		Generation: uuid.NewString(),
		Epoch:      s.epoch + 1,
		Time:       time.Now().UnixNano(),
		Entropy:    entropy,
		Hostname:   newHostname(id),
		MachineID:  fmt.Sprintf("%x", id[:]),
		Context:    &api.Context{User: s.meta.Context.User, Workdir: s.meta.Context.Workdir, Env: s.meta.Context.Env},
	}
	identity.Net, err = s.network()
	return identity, err
}

// whileAlive returns a context that ends when the machine does.
func (s *Sandbox) whileAlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-s.machine.Done():
			cancel(vmm.ErrDead)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// explain prefers the reason of a death over its consequences.
func (s *Sandbox) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if mayBeDeath(err) {
		// The end of the stream or of the memory is mostly the first sign of a death; the process's own end tells why. Who has given up asks no more.
		select {
		case <-s.machine.Done():
		case <-ctx.Done():
		case <-time.After(deathDelay):
		}
	}
	if reason := s.Err(); reason != nil {
		return reason
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// mayBeDeath reports whether an error looks like those of a VMM that is gone.
func mayBeDeath(err error) bool {
	var answer *guest.Error
	if errors.As(err, &answer) {
		return false // only the living answer
	}
	var file *fs.PathError
	return errors.Is(err, guest.ErrClosed) || errors.Is(err, unix.ESRCH) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, fs.ErrNotExist) ||
		errors.As(err, &file) && strings.HasPrefix(file.Path, "/proc/")
}
