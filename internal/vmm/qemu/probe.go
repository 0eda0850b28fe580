package qemu

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/cage"
)

// probeGuest is assembled from probe/guest.asm.
//
//go:embed probe/guest.bin
var probeGuest []byte

const (
	probeTimeout = 5 * time.Second
	probeExit    = 0x2a<<1 | 1 // what QEMU exits with when the probe guest has reported
	romSize      = 64 << 10
	resetVector  = romSize - 16
)

// KVMStatus says whether QEMU can run guests on this host's KVM, and if not, why and what to do.
type KVMStatus struct {
	Usable bool   `json:"usable"`
	Reason string `json:"reason,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

// KVM tells whether guests of the given architecture run on KVM here. A device that opens proves nothing (it may belong to a module that runs no
// ordinary kernel), so a tiny guest is booted; the result is kept until the host boots again or the binary changes.
func (e *Engine) KVM(ctx context.Context, arch string) KVMStatus {
	hw, err := hardwareFor(arch)
	if err != nil {
		return KVMStatus{Reason: err.Error()}
	}
	if arch != runtime.GOARCH {
		return KVMStatus{Reason: fmt.Sprintf("the host is %s, the guest %s", runtime.GOARCH, arch)}
	}
	facts, err := e.facts(ctx, hw.binary)
	if err != nil {
		return KVMStatus{Reason: err.Error()}
	}
	return facts.KVM
}

// choose turns Auto into the accelerator to use, and refuses KVM where it can't work.
func (e *Engine) choose(ctx context.Context, arch string, accel vmm.Accel) (vmm.Accel, error) {
	if accel == vmm.TCG {
		return accel, nil
	}
	status := e.KVM(ctx, arch)
	switch {
	case status.Usable:
		return vmm.KVM, nil
	case accel == vmm.KVM:
		return "", fmt.Errorf("KVM is not usable: %s; %s, or use --accel tcg", status.Reason, status.Hint)
	}
	return vmm.TCG, nil
}

// probeKVM finds out with the cheap tests first.
func probeKVM(ctx context.Context, binary string) KVMStatus {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return KVMStatus{Reason: "there is no /dev/kvm", Hint: "load kvm_intel or kvm_amd, and enable virtualization in the firmware (in a VM: nested virtualization)"}
	case errors.Is(err, os.ErrPermission):
		return KVMStatus{Reason: "no permission to open /dev/kvm", Hint: "add your user to the kvm group: sudo usermod -aG kvm $USER, then log in again"}
	case err != nil:
		return KVMStatus{Reason: err.Error(), Hint: "see the kernel's log"}
	}
	f.Close()
	if runtime.GOARCH != "amd64" {
		return KVMStatus{Usable: true}
	}
	return bootProbe(ctx, binary, vmm.KVM)
}

// bootProbe runs the probe guest.
func bootProbe(ctx context.Context, binary string, accel vmm.Accel) KVMStatus {
	const hint = "the host's KVM can't run ordinary guests; load kvm_intel or kvm_amd on hardware with virtualization"
	rom, err := cage.MemoryFile("probe", probeROM())
	if err != nil {
		return KVMStatus{Reason: err.Error(), Hint: hint}
	}
	defer rom.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cpu := "host"
	if accel == vmm.TCG {
		cpu = "max"
	}
	output := new(cage.Console)
	cmd := exec.CommandContext(ctx, binary, "-machine", "microvm", "-accel", string(accel), "-cpu", cpu, "-m", "16M", "-nodefaults", "-no-user-config",
		"-display", "none", "-bios", "/proc/self/fd/3", "-device", "isa-debug-exit,iobase=0x501,iosize=2")
	cmd.ExtraFiles = []*os.File{rom}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == probeExit:
		return KVMStatus{Usable: true}
	case ctx.Err() != nil:
		return KVMStatus{Reason: fmt.Sprintf("a probe guest did not answer in %v", probeTimeout), Hint: hint}
	}
	return KVMStatus{Reason: fmt.Sprintf("a probe guest failed (%v): %s", err, firstLine(output.String())), Hint: hint}
}

// probeROM places the probe guest in a boot ROM with a jump to it at the reset vector.
func probeROM() []byte {
	rom := make([]byte, romSize)
	copy(rom, probeGuest)
	target := -(resetVector + 3) // relative to the next instruction, 16 bits wide
	copy(rom[resetVector:], []byte{0xe9, byte(target), byte(target >> 8)})
	return rom
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
