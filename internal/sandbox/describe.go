package sandbox

import (
	"runtime"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// describe records in a snapshot's metadata what its machine runs on.
func describe(m *snapshot.Metadata, d vmm.Description) {
	m.Engine = snapshot.Engine{Name: d.Engine, Version: d.Version, Machine: d.MachineType, Accel: string(d.Accel)}
	m.CPU = snapshot.CPU{Model: d.CPUModel, Flags: d.CPUFlags, TSCKHz: d.TSCKHz}
}

// hostInfo says what this host offers to a snapshot that is to be woken.
func hostInfo(arch string, d vmm.Description) snapshot.HostInfo {
	info := snapshot.HostInfo{Arch: arch, MaxVCPUs: maxCPUs}
	var m snapshot.Metadata
	describe(&m, d)
	info.Engine, info.CPU = m.Engine, m.CPU
	if memory, err := hostMemory(); err == nil {
		info.MemoryBytes = memory
	}
	if d.Accel == vmm.KVM {
		info.MaxVCPUs = min(maxCPUs, 4*runtime.NumCPU()) // beyond that a spin lock's holder is rarely the one that runs
	}
	return info
}
