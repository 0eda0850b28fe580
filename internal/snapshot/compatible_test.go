package snapshot_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore/internal/snapshot"
)

// host is one that full() was made on.
func host() snapshot.HostInfo {
	m := full()
	return snapshot.HostInfo{Arch: m.Arch, Engine: m.Engine, CPU: m.CPU, MaxVCPUs: 8, MemoryBytes: 16 << 30, HugePages: true}
}

func TestCompatible(t *testing.T) {
	tests := []struct {
		name string
		host func(h *snapshot.HostInfo)
		want []string // fields
	}{
		{"same", func(*snapshot.HostInfo) {}, nil},
		{"unknown", func(h *snapshot.HostInfo) { *h = snapshot.HostInfo{Arch: h.Arch, HugePages: true} }, nil},
		{"more flags", func(h *snapshot.HostInfo) { h.CPU.Flags = append(h.CPU.Flags, "avx512f") }, nil},
		{"clock near", func(h *snapshot.HostInfo) { h.CPU.TSCKHz += 600 }, nil},
		{"clock off", func(h *snapshot.HostInfo) { h.CPU.TSCKHz -= 601 }, []string{"cpu.tsc_khz"}},
		{"arch", func(h *snapshot.HostInfo) { h.Arch = "arm64" }, []string{"arch"}},
		{"engine", func(h *snapshot.HostInfo) { h.Engine.Name = "firecracker"; h.Engine.Version = "1.9" }, []string{"engine.name"}},
		{"version", func(h *snapshot.HostInfo) { h.Engine.Version = "8.0" }, []string{"engine.version"}},
		{"machine", func(h *snapshot.HostInfo) { h.Engine.Machine = "q35" }, []string{"engine.machine"}},
		{"accel", func(h *snapshot.HostInfo) { h.Engine.Accel = "kvm" }, []string{"engine.accel"}},
		{"model", func(h *snapshot.HostInfo) { h.CPU.Model = "host" }, []string{"cpu.model"}},
		{"flags", func(h *snapshot.HostInfo) { h.CPU.Flags = []string{"sse4_2"} }, []string{"cpu.flags"}},
		{"huge pages", func(h *snapshot.HostInfo) { h.HugePages = false }, []string{"huge_pages"}},
		{"vcpus", func(h *snapshot.HostInfo) { h.MaxVCPUs = 1 }, []string{"vcpus"}},
		{"memory", func(h *snapshot.HostInfo) { h.MemoryBytes = 1 << 20 }, []string{"memory_bytes"}},
		{"several", func(h *snapshot.HostInfo) { h.Arch = "arm64"; h.CPU.Flags = []string{"neon"} }, []string{"arch", "cpu.flags"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := host()
			test.host(&h)
			err := full().Compatible(h)
			var fields []string
			if incompatible := new(snapshot.IncompatibleError); errors.As(err, &incompatible) {
				for _, d := range incompatible.Differences {
					fields = append(fields, d.Field)
					for _, word := range []string{d.Field, d.Want, d.Have, full().ID.String(), "apt:bookworm"} {
						if word == "" || !strings.Contains(err.Error(), word) {
							t.Errorf("error %q does not speak of %q", err, word)
						}
					}
				}
			} else if err != nil {
				t.Errorf("got %v", err)
			}
			if diff := cmp.Diff(test.want, fields); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestCompatibleDisk boots a disk-only snapshot, which any engine can.
func TestCompatibleDisk(t *testing.T) {
	m := full()
	delete(m.Artifacts, snapshot.MemoryFile)
	h := host()
	h.Engine, h.CPU, h.HugePages = snapshot.Engine{Name: "other", Version: "1"}, snapshot.CPU{Model: "other"}, false
	if err := m.Compatible(h); err != nil {
		t.Error(err)
	}
	h.Arch = "arm64"
	if err := m.Compatible(h); err == nil {
		t.Error("a disk of another architecture")
	}
}
