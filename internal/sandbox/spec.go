package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/vmm"
)

// CreateSpec says what machine to make and to freeze.
type CreateSpec struct {
	ID     uuid.UUID // zero: a new one
	Names  []string
	Labels map[string]string

	Image string // an image reference, or
	From  string // a snapshot whose disk, context and commands are the start; it is booted, not woken

	Arch        string
	CPUs        int
	MemoryBytes int64
	DiskBytes   int64 // of the whole file system; ignored with From
	Kernel      string
	Accel       string
	Net         string
	Policy      network.Policy // what the machine may reach while it is made; it is not kept

	Steps        []Step
	StartCommand string        // left running in the snapshot
	ReadyCommand string        // retried until it succeeds
	ReadyTimeout time.Duration // for ReadyCommand to succeed in; zero: 10 minutes
	NoCache      bool          // run every step again
	NoPrefetch   bool          // don't wake it to learn what it touches then
}

// Bounds of what is asked for. They are far from what is sensible and only keep mistakes from becoming strange failures later.
const (
	maxCPUs   = 64
	minMemory = 128 << 20 // kernel, agent and a little to work with
	maxMemory = 1 << 40
	minDisk   = 8 << 20
	maxDisk   = 8 << 40
	sizeUnit  = 2 << 20 // memory comes in huge pages or in multiples of them
)

// Check refuses what can't be made, naming the value.
func (c CreateSpec) Check() error {
	if (c.Image == "") == (c.From == "") {
		return errors.New("name either an image or a snapshot to start from")
	}
	if c.CPUs < 1 || c.CPUs > maxCPUs {
		return fmt.Errorf("%d virtual CPUs: choose 1 to %d", c.CPUs, maxCPUs)
	}
	if c.MemoryBytes < minMemory || c.MemoryBytes > maxMemory {
		return fmt.Errorf("%d MiB of memory: choose %d MiB to %d MiB", c.MemoryBytes>>20, minMemory>>20, int64(maxMemory)>>20)
	}
	if c.MemoryBytes%sizeUnit != 0 {
		return fmt.Errorf("%d bytes of memory: choose a multiple of %d MiB", c.MemoryBytes, sizeUnit>>20)
	}
	if host, err := hostMemory(); err == nil && c.MemoryBytes > host {
		return fmt.Errorf("%d MiB of memory: this host has %d MiB", c.MemoryBytes>>20, host>>20)
	}
	if c.From == "" && (c.DiskBytes < minDisk || c.DiskBytes > maxDisk) {
		return fmt.Errorf("%d MiB of disk: choose %d MiB to %d MiB", c.DiskBytes>>20, minDisk>>20, int64(maxDisk)>>20)
	}
	if _, err := vmm.ParseAccel(c.Accel); err != nil {
		return err
	}
	net, err := vmm.ParseNetwork(c.Net)
	if err != nil {
		return err
	}
	if err := checkPolicy(c.Policy, net); err != nil {
		return err
	}
	if c.ReadyTimeout < 0 {
		return fmt.Errorf("a ready command that has %v to succeed: choose more than nothing", c.ReadyTimeout)
	}
	for _, name := range c.Names {
		if err := store.CheckName(name); err != nil {
			return err
		}
	}
	for i, step := range c.Steps {
		if err := step.check(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

// hostMemory returns the host's memory in bytes.
func hostMemory() (int64, error) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemTotal: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemTotal")
}
