package sandbox

import (
	"os"
	"runtime"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// TestOnFirecracker takes a machine on the other engine through its life, on a process that answers as Firecracker does: from an image's disk, shown as a file, to
// a snapshot and on from there. The guest counts and has no agent, so that what is said to one is left out.
func TestOnFirecracker(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the counting guest is for x86, and Firecracker runs guests of the host's architecture")
	}
	if os.Geteuid() != 0 {
		t.Skip("showing a disk as a file takes root")
	}
	ctx, b := t.Context(), fresh(t, nil)
	versions := fctest.Install(t, "amd64", "1.15.1", "1.16.1")
	b.Others = func(_, version string) (vmm.Engine, error) {
		return firecracker.New(firecracker.Programs{VersionsDir: versions, Version: version}, nil), nil
	}
	b.leavesNothing(t, func() {
		spec := small()
		spec.Engine, spec.EngineVersion, spec.Accel = "firecracker", "1.15.1", "auto"
		disk, meta, err := b.foundation(ctx, spec, NoProgress{})
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		if meta.Engine.Name != "firecracker" || meta.Engine.Version != "1.15.1" || meta.Engine.Accel != "kvm" {
			t.Fatalf("the machine's engine is %+v", meta.Engine)
		}
		memory, err := emptyMemory(b.scratch(), meta.MemoryBytes)
		if err != nil {
			t.Fatal(err)
		}
		s := &Sandbox{host: b.Host, id: uuid.New(), memory: memory, meta: meta, parent: disk}
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		config := vmm.Config{Arch: meta.Arch, CPUs: meta.VCPUs, MemoryBytes: meta.MemoryBytes, Accel: vmm.KVM}
		guest := vmmtest.Config(t, vmmtest.Long())
		guest.Memory.Close() // it has the sandbox's
		config.Boot = guest.Boot
		if err := s.start(ctx, config); err != nil {
			t.Fatal(err)
		}
		vmmtest.WaitCount(t, s.machine, 1<<14)
		draft, err := b.Snapshots.NewDraft(ctx, uuid.New(), disk)
		if err != nil {
			t.Fatal(err)
		}
		defer draft.Abort()
		if err := s.capture(ctx, draft, NoProgress{}); err != nil {
			t.Fatal(err)
		}
		count := vmmtest.Count(t, s.machine)
		snap, err := s.publish(ctx, draft, PauseSpec{}, NoProgress{})
		if err != nil {
			t.Fatal(err)
		}
		defer snap.Close()

		if err := b.compatible(ctx, *snap.Metadata(), vmm.KVM); err != nil {
			t.Errorf("the version that it was frozen by can't wake it: %v", err)
		}
		state, err := snap.State(ctx)
		if err != nil {
			t.Fatal(err)
		}
		woken := &Sandbox{host: b.Host, id: uuid.New(), meta: *snap.Metadata(), parent: snap}
		defer func() {
			if err := woken.Close(); err != nil {
				t.Error(err)
			}
		}()
		if woken.memory, err = b.Snapshots.FlatMemory(ctx, snap, func(int64, int64) {}); err != nil {
			t.Fatal(err)
		}
		config.Boot, config.State = nil, state
		if err := woken.start(ctx, config); err != nil {
			t.Fatal(err)
		}
		if now := vmmtest.WaitCount(t, woken.machine, count); now > count+1<<31 {
			t.Errorf("the counter went from %d to %d", count, now)
		}
	})
}
