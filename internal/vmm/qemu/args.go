package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sporevm/spore/internal/vmm"
)

// The descriptors that a VMM is born with. Nothing else is open in it.
const (
	fdMonitor  = 3 + iota // QMP
	fdAgent               // listening socket behind the guest's agent port
	fdMemory              // file mapped as RAM
	fdState               // written by SaveState
	fdDisk                // NBD client end; closed without a disk
	fdTap                 // closed without a tap interface
	fdIncoming            // device state to start from, which QEMU closes when it has read it; closed on a boot
	fdKernel              // closed unless it is a boot, as is the next
	fdInitramfs
)

// hardware is what differs between the architectures of guests.
type hardware struct {
	binary  string
	machine string // machine type with its options
	cpuTCG  string
	console string
}

func hardwareFor(arch string) (hardware, error) {
	switch arch {
	case "amd64":
		return hardware{
			binary:  "qemu-system-x86_64",
			machine: "microvm,isa-serial=on,suppress-vmdesc=on",
			cpuTCG:  "max,-erms", // "fast" string moves are emulated byte by byte; without them the kernel copies in words
			console: "ttyS0",
		}, nil
	case "arm64":
		return hardware{
			binary:  "qemu-system-aarch64",
			machine: "virt,suppress-vmdesc=on",
			cpuTCG:  "max,pauth-impdef=on", // the architected pointer authentication is several times slower to emulate
			console: "ttyAMA0",
		}, nil
	}
	return hardware{}, fmt.Errorf("no machine type for architecture %q: amd64 and arm64 are known", arch)
}

// arguments builds QEMU's command line. A thawed machine must get the same devices in the same order as the frozen one had.
func arguments(c vmm.Config, hw hardware, tscKHz int64) []string {
	args := []string{
		"-name", c.Name,
		"-no-user-config", "-nodefaults", "-no-reboot",
		"-display", "none",
		"-machine", hw.machine + ",memory-backend=ram0",
		"-global", "migration.send-configuration=off",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-smp", strconv.Itoa(c.CPUs),
		"-m", strconv.FormatInt(c.MemoryBytes>>20, 10) + "M",
		"-object", fmt.Sprintf("memory-backend-file,id=ram0,size=%d,mem-path=/proc/self/fd/%d,share=off,prealloc=off", c.MemoryBytes, fdMemory),
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", fdMonitor),
		"-mon", "chardev=monitor,mode=control",
		"-chardev", "stdio,id=console,signal=off",
		"-serial", "chardev:console",
	}
	if c.Accel == vmm.KVM {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		args = append(args, "-accel", "tcg", "-cpu", hw.cpuTCG)
	}
	args = append(args,
		"-device", "virtio-serial-device",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", fdAgent),
		"-device", "virtserialport,chardev=agent,name=agent",
		"-device", "virtio-balloon-device,free-page-reporting=on",
	)
	if c.Disk != nil {
		args = append(args,
			"-blockdev", fmt.Sprintf("driver=nbd,node-name=root,server.type=fd,server.str=%d,discard=unmap,detect-zeroes=off", fdDisk),
			"-device", "virtio-blk-device,drive=root,logical_block_size=4096,physical_block_size=4096",
		)
	}
	switch c.Network {
	case vmm.NetUser:
		args = append(args, "-netdev", "user,id=net0", "-device", "virtio-net-device,netdev=net0")
	case vmm.NetTap:
		args = append(args, "-netdev", fmt.Sprintf("tap,id=net0,fd=%d,vhost=off", fdTap), "-device", "virtio-net-device,netdev=net0")
	}
	if c.Boot == nil {
		return append(args, "-incoming", fmt.Sprintf("fd:%d", fdIncoming))
	}
	return append(args,
		"-kernel", fmt.Sprintf("/proc/self/fd/%d", fdKernel),
		"-initrd", fmt.Sprintf("/proc/self/fd/%d", fdInitramfs),
		"-append", kernelArguments(c, hw, tscKHz),
	)
}

// kernelArguments returns what the guest's kernel has to know about the machine, then the caller's own arguments.
func kernelArguments(c vmm.Config, hw hardware, tscKHz int64) string {
	args := []string{"console=" + hw.console, "quiet", "panic=-1", "random.trust_cpu=on"}
	if c.Arch == "amd64" {
		args = append(args, "reboot=t")
		if tscKHz > 0 {
			// The guest would calibrate its time-stamp counter against an emulated timer, and on a busy host spin for ever.
			args = append(args, "tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", tscKHz), fmt.Sprintf("lpj=%d", 2*tscKHz), "no_timer_check")
		}
	}
	if c.Boot.Args != "" {
		args = append(args, c.Boot.Args)
	}
	return strings.Join(args, " ")
}
