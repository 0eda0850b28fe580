// Package vmm is the border to virtual machine monitors: what an engine must be able to do for a machine to be booted, frozen and thawed.
//
// An engine never copies guest memory on start. It maps a file privately, so that every page which the guest writes becomes a private page of the
// VMM's process, and the set of written pages can be read from the kernel at any time ([Machine.Dirty]). Booting is the same thing with an empty file.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/sporevm/spore/internal/block"
)

// Accel says what executes guest instructions.
type Accel string

// The accelerators. Auto is a wish only: a running machine has one of the others.
const (
	Auto Accel = "auto"
	KVM  Accel = "kvm"
	TCG  Accel = "tcg" // software emulation
)

// ParseAccel reads the value of an --accel flag.
func ParseAccel(s string) (Accel, error) {
	switch a := Accel(s); a {
	case "":
		return Auto, nil
	case Auto, KVM, TCG:
		return a, nil
	}
	return "", fmt.Errorf("unknown accelerator %q: choose auto, kvm or tcg", s)
}

// Network says how a machine reaches the world.
type Network string

// The kinds of network. NetNone machines have no interface but loopback.
const (
	NetNone Network = "none"
	NetUser Network = "user" // the VMM's user-mode network: outgoing only, no privilege needed
	NetTap  Network = "tap"  // a tap interface in a network namespace of the machine's own
)

// ParseNetwork reads the value of a --net flag.
func ParseNetwork(s string) (Network, error) {
	switch n := Network(s); n {
	case "":
		return NetNone, nil
	case NetNone, NetUser, NetTap:
		return n, nil
	}
	return "", fmt.Errorf("unknown network %q: choose none, user or tap", s)
}

// ErrDead is wrapped by the errors of a machine whose VMM has ended.
var ErrDead = errors.New("the virtual machine has died")

// Boot is how a machine starts from nothing.
type Boot struct {
	Kernel    string // path of the kernel image, readable for all: the VMM may run as another user
	Initramfs string // path, likewise
	Args      string // kernel arguments beyond those that the engine itself needs
}

// Tap is a tap interface whose frames begin with a struct virtio_net_hdr. An engine attaches to it in one of two ways, once.
type Tap interface {
	// Open attaches to it, for VMMs that take a descriptor. The engine closes the file.
	Open() (*os.File, error)
	// Name and Namespace are for VMMs that open it by name, in its network namespace. The file stays the caller's.
	Name() string
	Namespace() *os.File
}

// Config describes a machine to start. Exactly one of Boot and State is set.
type Config struct {
	Name        string // shown in process lists and errors
	Arch        string // amd64 or arm64; the guest's
	CPUs        int
	MemoryBytes int64
	Accel       Accel
	Network     Network

	// Dir is a private folder of the machine's, with a short path (a socket is made in it). The caller removes it after Close.
	Dir string

	// Memory is mapped privately as the guest's RAM; the engine opens it again by descriptor and does not keep it. An engine that can't boot on a file boots on
	// zeroed memory of its own, which is the same as the empty file.
	// The machine's VMM may run as another user: the file's mode must let that user read and write.
	Memory *os.File

	// Paged says that pages of Memory come at a cost, one by one: nothing of it is to be read that was not touched.
	Paged bool

	// Disk is the root disk, nil for none: a connected stream on which the caller serves it as NBD or, for an engine with that need, a file or block device.
	// The engine takes the descriptor over.
	Disk *os.File

	// DiskTree is, where Disk is a file of a file system that is attached nowhere, a mount of that file system, likewise. An engine whose VMM has a root of its own
	// attaches it there. The file stays the caller's.
	DiskTree *os.File

	// User is whom the machine's VMM runs as, as Needs.NewUser returned it. Nil: that is the engine's choice. It stays the caller's.
	User User

	// Tap is the interface of a machine with NetTap. It is the caller's, who removes it after Close; the machine attaches to it.
	Tap Tap

	// Uffd is the socket of a process that serves the memory of a thawing machine page by page, in the place of Memory, which may then be nil. Only for engines
	// that can use one.
	Uffd string

	Boot  *Boot
	State []byte // device state as saved by SaveState of the same engine
}

// Needs is what an engine wants of its machines that others do not.
type Needs struct {
	DiskFile  bool // a disk that is a file or a block device, rather than an NBD stream
	ELFKernel bool // on x86 a kernel that is an ELF file, rather than a bzImage

	// Served tells that Config.Uffd is understood, and that memory from afar is better served so than as a file. User is whom its machines run as: nobody else
	// is to be let near what serves them.
	Served bool
	User   int

	// MayServe says why this host lets no machine have its memory served so; nil: nobody has to be asked.
	MayServe func() error

	// NewUser takes a user for a machine of whom it has to be known beforehand whom it runs as. Nil: they all run as User.
	NewUser func() (User, error)
}

// User is a user that one machine alone runs as, until it is closed, which may be done more than once.
type User interface {
	ID() int
	Close() error
}

// Particular is implemented by engines that have needs.
type Particular interface{ Needs() Needs }

// NeedsOf returns an engine's needs.
func NeedsOf(e Engine) Needs {
	if p, ok := e.(Particular); ok {
		return p.Needs()
	}
	return Needs{}
}

// Engine starts machines of one kind of VMM. Engines are safe for concurrent use.
type Engine interface {
	// Name is the engine's name in metadata, such as "qemu".
	Name() string
	// Describe tells what a machine would run on; it is recorded in snapshots and compared before a resume.
	// For Auto it says which accelerator would be chosen.
	Describe(ctx context.Context, arch string, accel Accel) (Description, error)
	// Start starts a machine and returns when its virtual CPUs run. A failure leaves nothing behind.
	Start(ctx context.Context, c Config) (Machine, error)
}

// Description is what decides whether one engine can run what another froze.
type Description struct {
	Engine, Version string
	MachineType     string
	CPUModel        string
	CPUFlags        []string // the host's, ascending, where the guest sees the host's CPU; else none
	TSCKHz          int64    // 0: the guest has no time-stamp counter of the host's frequency
	Accel           Accel    // never Auto
}

// Machine is one running VMM process.
type Machine interface {
	// Dial opens the byte stream to the guest's agent. One connection at a time; closing it ends the guest's session.
	Dial(ctx context.Context) (net.Conn, error)
	// Stop halts the virtual CPUs; Continue lets them go on.
	Stop(ctx context.Context) error
	Continue(ctx context.Context) error
	// SaveState returns the state of CPUs and devices, without memory, of a stopped machine.
	SaveState(ctx context.Context) ([]byte, error)
	// Dirty returns the 4 KiB blocks of memory that were written since the start. The machine should be stopped.
	Dirty(ctx context.Context) (*block.Set, error)
	// ReadMemory fills p from guest RAM at off.
	ReadMemory(p []byte, off int64) error
	// Done is closed when the VMM has ended, for whatever reason; Err then says why. After Close, Err is nil.
	Done() <-chan struct{}
	Err() error
	// Log returns the end of what the VMM and the guest's console have printed.
	Log() string
	// PID is the VMM's process id, for measurements of a live machine. Signals go through Close.
	PID() int
	// Phases tells how long the parts of Start took.
	Phases() Phases
	// Close kills the VMM, waits for its end and frees what it held. It may be called more than once.
	Close() error
}

// Measured is implemented by machines whose VMM measures itself.
type Measured interface {
	// Measure returns numbers by name, such as "block.read_bytes", but for those that are 0. They are the VMM's own, and what they mean depends on it; those
	// that count do so since its process started.
	Measure(ctx context.Context) (map[string]float64, error)
}

// Phases are the durations of a start: process start to control channel, and from there to running CPUs.
type Phases struct {
	Spawn, Load time.Duration
}
