package snapshot

import (
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// FormatVersion is the version of metadata.json that this package writes, and
// the newest that it reads.
const FormatVersion = 1

// Names of a snapshot's artifacts.
const (
	MetadataFile = store.Manifest
	DiskFile     = "rootfs.ext4"
	MemoryFile   = "memfile"
	DiskHeader   = DiskFile + ".header"
	MemoryHeader = MemoryFile + ".header"
	StateFile    = "snapfile"
)

// Kind says how a snapshot came about.
type Kind string

// The kinds of snapshots.
const (
	KindImage   Kind = "image"   // an image's root filesystem as it came
	KindStep    Kind = "step"    // a recipe's step, kept to be built upon
	KindMachine Kind = "machine" // a machine that a user froze
)

// Metadata is what metadata.json says: everything that decides whether a host
// can run the snapshot, what to run in it, where it came from, and the digests
// that all other checks start from.
//
// Whoever makes a snapshot fills it in, but for the fields of the first group,
// which Draft.Commit sets.
type Metadata struct {
	Version     int                 `json:"version"`          // FormatVersion
	ID          uuid.UUID           `json:"id"`               // the snapshot's
	Parent      uuid.UUID           `json:"parent,omitzero"`  // what it was made from, nil UUID for none
	Origin      uuid.UUID           `json:"origin,omitzero"`  // what it was squashed from; Squash sets it
	Generation  uint32              `json:"generation"`       // how many ancestors it has
	Layers      []uuid.UUID         `json:"layers,omitempty"` // the other snapshots whose data it needs, ascending
	DiskBytes   int64               `json:"disk_bytes"`       // size of the disk
	MemoryBytes int64               `json:"memory_bytes"`     // size of the memory, which a disk-only snapshot may leave 0
	Artifacts   map[string]Artifact `json:"artifacts"`        // every other file of the snapshot
	Created     time.Time           `json:"created"`          // UTC; Commit sets it only if it is zero

	Kind Kind   `json:"kind"`
	Arch string `json:"arch"` // Go's name: amd64, arm64

	VCPUs     int    `json:"vcpus,omitempty"`
	HugePages bool   `json:"huge_pages,omitempty"` // memory in blocks of 2 MiB
	Net       string `json:"net,omitempty"`        // the machine's network: none, user, tap

	Engine    Engine       `json:"engine,omitzero"`      // what froze it; needed with a memory
	CPU       CPU          `json:"cpu,omitzero"`         // as the guest sees it; needed with a memory
	Kernel    Kernel       `json:"kernel,omitzero"`      // the guest's
	Initramfs block.Digest `json:"initramfs,omitzero"`   // of the initramfs it booted with
	Agent     string       `json:"agent,omitempty"`      // the guest agent's version
	GuestUsed int64        `json:"guest_used,omitempty"` // bytes of memory in use when it was frozen, as the guest counted them

	Image   Image   `json:"image,omitzero"`
	Context Context `json:"context,omitzero"`

	Entrypoint   []string          `json:"entrypoint,omitempty"` // the image's
	Cmd          []string          `json:"cmd,omitempty"`        // the image's
	StartCommand string            `json:"start_command,omitempty"`
	ReadyCommand string            `json:"ready_command,omitempty"`
	Steps        []Step            `json:"steps,omitempty"` // all since the image
	Labels       map[string]string `json:"labels,omitempty"`

	Processes []Process `json:"processes,omitempty"` // of the user's, that were frozen; as the guest told them
}

// Artifact records a file of the snapshot.
type Artifact struct {
	Size int64 `json:"size"` // bytes
	// Digest of the whole file. Data files (DiskFile, MemoryFile) have none: the
	// headers, which have, hold a digest for each of their frames.
	Digest block.Digest `json:"digest,omitzero"`
}

// Engine is a virtual machine monitor and how it was used.
type Engine struct {
	Name    string `json:"name"`              // qemu, firecracker
	Version string `json:"version"`           // as the engine tells it
	Machine string `json:"machine,omitempty"` // machine type
	Accel   string `json:"accel,omitempty"`   // kvm, tcg
}

// CPU is a processor as a guest sees it.
type CPU struct {
	Model  string   `json:"model,omitempty"`
	Flags  []string `json:"flags,omitempty"` // features that the guest may use; none recorded, none required
	TSCKHz int64    `json:"tsc_khz,omitempty"`
}

// Kernel is a guest kernel.
type Kernel struct {
	Version string       `json:"version,omitempty"`
	Digest  block.Digest `json:"digest,omitzero"`
	Cmdline string       `json:"cmdline,omitempty"`
}

// Image is the container image that a snapshot goes back to.
type Image struct {
	Ref      string   `json:"ref,omitempty"`      // as the user gave it
	Digest   string   `json:"digest,omitempty"`   // sha256:…
	Packages []string `json:"packages,omitempty"` // name=version, for an image made from packages
}

// Context is what commands run in.
type Context struct {
	User    string            `json:"user,omitempty"`
	Workdir string            `json:"workdir,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
}

// Step is one step of a recipe.
type Step struct {
	Kind string   `json:"kind"` // run, copy, env, workdir, user
	Args []string `json:"args,omitempty"`
	Hash string   `json:"hash,omitempty"` // of the files that it takes in
}

// Process is a process in a frozen machine.
type Process struct {
	PID     int    `json:"pid"`
	Parent  int    `json:"ppid"`
	UID     int    `json:"uid"`
	Command string `json:"command"`
}

// HasMemory tells whether the snapshot holds a frozen machine, not only a disk.
func (m *Metadata) HasMemory() bool {
	_, has := m.Artifacts[MemoryFile]
	return has
}

// StoredBytes is what the snapshot's own files take up, metadata.json excepted.
func (m *Metadata) StoredBytes() int64 {
	var n int64
	for _, a := range m.Artifacts {
		n += a.Size
	}
	return n
}
