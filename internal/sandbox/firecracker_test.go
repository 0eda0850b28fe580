package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/expose/exposetest"
	"github.com/sporevm/spore/internal/farmemory"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/cage"
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
	var woken *Sandbox
	b.livesOnFirecracker(t, func(s *Sandbox) (err error) {
		woken = s
		s.memory, err = b.Snapshots.FlatMemory(ctx, s.parent, func(int64, int64) {})
		return err
	}, func() {
		if numbers, err := woken.Measure(ctx); err != nil || numbers["put_api_requests.actions_count"] != 1 {
			t.Errorf("the machine has measured %v (%v)", numbers, err)
		}
	})
}

// TestInJail is TestOnFirecracker in jails, and the woken machine's memory is served as learning what it touches has it: by a file system that is attached nowhere, of
// another process.
func TestInJail(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the counting guest is for x86, and Firecracker runs guests of the host's architecture")
	}
	if err := cage.CheckRoom(); err != nil {
		t.Skipf("no jails here: %v", err)
	}
	if err := exposetest.FUSE(); err != nil {
		t.Skipf("memory can't be served lazily here: %v", err)
	}
	b := fresh(t, nil)
	jail := firecracker.Jail{Base: t.TempDir(), FirstID: 73000, IDs: 4}
	engine := firecracker.New(firecracker.Programs{Binary: fctest.InstallStatic(t, "1.15.1")}, &jail)
	b.Others = func(string, string) (vmm.Engine, error) { return engine, nil }
	task, err := json.Marshal(memoryTask{Store: b.store, Cache: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	servers := &farmemory.Servers{Command: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), memoryEnv+"="+string(task))
		return cmd
	}}
	b.LazyMemory = func(ctx context.Context, s *snapshot.Snapshot, o LazyOptions) (LazyMemory, error) {
		m, err := servers.Open(ctx, s, farmemory.Options{Record: o.Record, Failed: o.Failed})
		if err != nil {
			return nil, err
		}
		return m, nil
	}
	var woken *Sandbox
	b.livesOnFirecracker(t, func(s *Sandbox) error {
		woken = s
		return s.mapLazily(t.Context(), LazyOptions{Record: true})
	}, func() {
		pages, err := woken.lazy.Pages(t.Context())
		if err != nil || pages.Len() == 0 || pages.Len() > 1000 {
			t.Errorf("the machine has touched %d pages (%v)", pages.Len(), err)
		}
	})
}

// livesOnFirecracker takes a machine through its life. The one that wakes comes to its memory by remember; look is called while it runs.
func (b bench) livesOnFirecracker(t *testing.T, remember func(*Sandbox) error, look ...func()) {
	ctx := t.Context()
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
		if err := remember(woken); errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		config.Boot, config.State = nil, state
		if err := woken.start(ctx, config); errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		if now := vmmtest.WaitCount(t, woken.machine, count); now > count+1<<31 {
			t.Errorf("the counter went from %d to %d", count, now)
		}
		for _, f := range look {
			f()
		}
	})
}
