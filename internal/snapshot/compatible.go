package snapshot

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// tscTolerance is how far, in parts per million, a host's time stamp counter may
// be from the one that a guest was frozen with: hosts of one model measure their
// own to within some tens, and a guest's clock is off by as much.
const tscTolerance = 250

// HostInfo is what a host offers to a snapshot. Zero fields but Arch and
// HugePages are unknown and not compared.
type HostInfo struct {
	Arch        string
	Engine      Engine // what would run the snapshot
	CPU         CPU    // what the guest would see
	MaxVCPUs    int
	MemoryBytes int64 // that a machine may have
	HugePages   bool  // whether there are any
}

// Compatible returns nil if host can run the snapshot, or an *IncompatibleError
// that lists all that is in the way. A snapshot without memory is booted, which
// takes only the right architecture and room.
func (m *Metadata) Compatible(host HostInfo) error {
	var found []Difference
	differ := func(field, want, have string) {
		found = append(found, Difference{Field: field, Want: want, Have: have})
	}
	// Same asks for equality where both sides are known.
	same := func(field, want, have string) {
		if want != "" && have != "" && want != have {
			differ(field, want, have)
		}
	}
	if m.Arch != host.Arch {
		differ("arch", m.Arch, host.Arch)
	}
	if host.MaxVCPUs > 0 && m.VCPUs > host.MaxVCPUs {
		differ("vcpus", strconv.Itoa(m.VCPUs), fmt.Sprintf("at most %d", host.MaxVCPUs))
	}
	if host.MemoryBytes > 0 && m.MemoryBytes > host.MemoryBytes {
		differ("memory_bytes", strconv.FormatInt(m.MemoryBytes, 10), fmt.Sprintf("at most %d", host.MemoryBytes))
	}
	if m.HasMemory() {
		same("engine.name", m.Engine.Name, host.Engine.Name)
		if m.Engine.Name == host.Engine.Name { // else its versions mean nothing
			same("engine.version", m.Engine.Version, host.Engine.Version)
			same("engine.machine", m.Engine.Machine, host.Engine.Machine)
		}
		same("engine.accel", m.Engine.Accel, host.Engine.Accel)
		same("cpu.model", m.CPU.Model, host.CPU.Model)
		if lacking := lacking(m.CPU.Flags, host.CPU.Flags); len(lacking) > 0 {
			differ("cpu.flags", "with "+strings.Join(lacking, " "), "without")
		}
		if !closeTo(m.CPU.TSCKHz, host.CPU.TSCKHz) {
			differ("cpu.tsc_khz", strconv.FormatInt(m.CPU.TSCKHz, 10), strconv.FormatInt(host.CPU.TSCKHz, 10))
		}
		if m.HugePages && !host.HugePages {
			differ("huge_pages", "true", "false")
		}
	}
	if len(found) == 0 {
		return nil
	}
	return &IncompatibleError{ID: m.ID, Differences: found, Image: m.Image.Ref}
}

// lacking returns what of want is not in have. An unknown have lacks nothing.
func lacking(want, have []string) []string {
	if len(have) == 0 {
		return nil
	}
	var missing []string
	for _, flag := range want {
		if !slices.Contains(have, flag) {
			missing = append(missing, flag)
		}
	}
	return missing
}

// closeTo compares two frequencies, of which zero is unknown.
func closeTo(want, have int64) bool {
	if want == 0 || have == 0 {
		return true
	}
	return max(want-have, have-want) <= want*tscTolerance/1_000_000
}
