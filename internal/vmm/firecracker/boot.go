package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/pagemap"
)

// The names of a machine's devices, and the guest's address on its vsock: every machine has a vsock of its own.
const (
	driveID     = "root"
	interfaceID = "net0"
	guestCID    = 3
)

// boot configures a machine and starts it on a kernel.
func (m *Machine) boot(ctx context.Context, c vmm.Config, tracked bool) error {
	args := kernelArguments(c)
	source := bootSource{Kernel: fdPath(fdKernel), Args: args}
	if c.Boot.Initramfs != "" {
		source.Initramfs = fdPath(fdInitramfs)
	}
	if err := checkKernel(c.Boot.Kernel, c.Arch); err != nil {
		return err
	}
	type request struct {
		path string
		body any
	}
	requests := []request{
		// Pages that were written are known from the page map, but a snapshot takes the state along with memory, and this makes it take the least.
		{"/machine-config", machineConfig{VCPUs: c.CPUs, MemoryMiB: c.MemoryBytes >> 20, TrackDirty: true}},
		{"/boot-source", source},
		{"/vsock", vsock{CID: guestCID, Path: homePath(vsockSocket)}},
		{"/entropy", entropy{}},
		{"/balloon", Balloon{DeflateOnOOM: true}},
	}
	if c.Disk != nil {
		// The root= of our own is enough: a "root device" gets a second one from Firecracker.
		requests = append(requests, request{"/drives/" + driveID, drive{ID: driveID, Path: fdPath(fdDisk)}})
	}
	if c.Tap != nil {
		requests = append(requests, request{"/network-interfaces/" + interfaceID, networkInterface{ID: interfaceID, Tap: c.Tap.Name()}})
	}
	for _, r := range requests {
		if err := m.api.put(ctx, r.path, r.body); err != nil {
			return err
		}
	}
	if err := m.api.call(ctx, long, "PUT", "/actions", action{actionStart}, nil); err != nil {
		return err
	}
	if !tracked {
		mark, off, err := m.mark(c, args)
		if err != nil {
			return err
		}
		found, err := pagemap.OfMark(m.PID(), c.MemoryBytes, mark, off)
		if err == nil {
			m.memory = mapped{found, m.home.sink}
			return nil
		}
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", vmm.ErrDead, err)
		}
	}
	var err error
	m.memory, err = newTracked(m.home.sink, c)
	return err
}

// mark returns something that is in a guest's memory, and where, from the moment that its CPUs run: on x86 the kernel's command line, which Firecracker puts at
// 128 KiB, where Linux leaves it; on ARM the magic number of the device tree in the last 2 MiB.
func (m *Machine) mark(c vmm.Config, args string) (mark []byte, off int64, err error) {
	switch c.Arch {
	case "amd64":
		return []byte(args), 0x20000, nil
	case "arm64":
		return []byte{0xd0, 0x0d, 0xfe, 0xed}, c.MemoryBytes - 2<<20, nil
	}
	return nil, 0, fmt.Errorf("nothing is known of the memory of %s machines", c.Arch)
}

// kernelArguments returns what the guest's kernel has to know about the machine, then the caller's own arguments.
func kernelArguments(c vmm.Config) string {
	args := []string{"console=ttyS0", "quiet", "panic=-1", "reboot=k", "random.trust_cpu=on", fmt.Sprintf("spore.port=vsock:%d", agentPort)}
	if c.Arch == "amd64" {
		// There is neither a keyboard nor a PCI bus to look for, and the host's clock is the best there is.
		args = append(args, "clocksource=kvm-clock", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd", "pci=off")
	}
	if c.Disk != nil {
		args = append(args, "root=/dev/vda", "rw")
	}
	if c.Boot.Args != "" {
		args = append(args, c.Boot.Args)
	}
	return strings.Join(args, " ")
}

// checkKernel refuses kernels of a kind that Firecracker does not load, and says what to do about it.
func checkKernel(path, arch string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the guest kernel: %w", err)
	}
	defer f.Close()
	head := make([]byte, 0x210)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("reading the guest kernel %s: %w", path, err)
	}
	switch {
	case arch == "amd64" && n >= 0x206 && string(head[0x202:0x206]) == "HdrS":
		return fmt.Errorf("the guest kernel %s is a bzImage, which firecracker does not load: unpack it to an ELF file with extract-vmlinux of the kernel's sources", path)
	case arch == "amd64" && !strings.HasPrefix(string(head), "\x7fELF"):
		return fmt.Errorf("the guest kernel %s is not an ELF file, which is what firecracker loads", path)
	case arch == "arm64" && (n < 0x3c || string(head[0x38:0x3c]) != "ARM\x64"):
		return fmt.Errorf("the guest kernel %s is not an uncompressed Image, which is what firecracker loads", path)
	}
	return nil
}
