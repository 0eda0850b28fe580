package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// TestHowFar goes as far with a real Firecracker as this host lets it, and says how far that is. What must work with the counting guest fails the test where it
// does not; whether Linux boots is the host's affair, and is told.
func TestHowFar(t *testing.T) {
	binary := realBinary(t)
	e := New(Programs{Binary: binary}, nil)
	found, err := e.Installed(t.Context(), runtime.GOARCH)
	if err != nil {
		t.Fatalf("Firecracker %s can't be used: %v", found.Version, err)
	}
	t.Logf("Firecracker %s, on KVM as %s has it", found.Version, kvmModules())
	c := config(t)
	m := start(t, e, c)
	first := vmmtest.WaitCount(t, m, 1<<14)
	waitDots(t, m, 1)
	t.Logf("a 64-bit guest without an operating system boots: it has counted to %d and written to its serial port", first)
	state, memory, dirty := vmmtest.Freeze(t, m, c.Memory)
	count := vmmtest.Count(t, m)
	m.Close()
	t.Logf("it was frozen at %d: %d bytes of state, %d pages written of %d", count, len(state), dirty.Len(), c.MemoryBytes/4096)

	file := start(t, e, thawed(t, state, memory))
	t.Logf("loaded with File it has gone on to %d", vmmtest.WaitCount(t, file, count))
	file.Close()
	if err := hostUserfaults().allow(unprivileged()); err != nil {
		t.Logf("it can't be loaded with Uffd here: %v", err)
	} else {
		s := serveMemory(t, memory)
		lazy := thawed(t, state, nil)
		lazy.Uffd = s.path
		served := start(t, e, lazy)
		t.Logf("loaded with Uffd it has gone on to %d, and has asked for %d pages", vmmtest.WaitCount(t, served, count), s.served.Load())
		served.Close()
	}
	t.Log("Linux: " + bootLinux(t, e))
}

// kvmModules names what serves /dev/kvm.
func kvmModules() string {
	modules, err := filepath.Glob("/sys/module/kvm_*")
	if err != nil || len(modules) == 0 {
		return "a part of the kernel"
	}
	for i, m := range modules {
		modules[i] = filepath.Base(m)
	}
	return strings.Join(modules, " and ")
}

// bootLinux boots the kernel that guests have here and tells what became of it.
func bootLinux(t *testing.T, e *Engine) string {
	k, err := guest.FindKernel(guest.KernelsDir(os.Getenv), "", "amd64")
	if err != nil {
		return err.Error()
	}
	path := filepath.Join(t.TempDir(), "vmlinux")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := guest.UnpackKernel(f, k.Path)
	if err = errors.Join(err, f.Close()); err != nil {
		return err.Error()
	}
	c := config(t)
	c.MemoryBytes = 256 << 20
	c.Boot = &vmm.Boot{Kernel: k.Path, Args: "earlyprintk=ttyS0 ignore_loglevel"}
	if packed {
		c.Boot.Kernel = path
	}
	m, err := e.Start(t.Context(), c)
	if err != nil {
		return fmt.Sprintf("%s does not start: %v", k.Version, err)
	}
	defer m.Close()
	const patience = 5 * time.Second // a kernel on hardware says its first words in a tenth of a second
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(m.Log(), "Linux version") {
			return k.Version + " boots"
		}
		select {
		case <-m.Done():
			return fmt.Sprintf("%s ends at once: %v", k.Version, m.Err())
		default:
		}
	}
	return fmt.Sprintf("%s runs, and has said nothing on its serial port in %v: %s", k.Version, patience, cpuTime(m.PID()))
}

// cpuTime tells how busy a process was.
func cpuTime(pid int) string {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return err.Error()
	}
	var total int64
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err == nil {
			total += ns
		}
	}
	return fmt.Sprintf("it has computed for %v", time.Duration(total).Round(time.Millisecond))
}
