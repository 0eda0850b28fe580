// Package vmmtest holds what every engine must do, as tests. They run on a guest of 50 bytes that counts in memory, so that they take milliseconds where an
// operating system would take seconds.
package vmmtest

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/vmm"
)

// The guests are assembled from the sources of the same name.
var (
	//go:embed guest/counter.elf
	counter []byte
	//go:embed guest/counter64.elf
	counter64 []byte
)

// Guest is what the contract's machines run.
type Guest struct {
	elf  []byte
	step uint32 // how far it counts between two dots, and between two pages
}

// PVH is the guest for engines that enter it by its PVH note.
func PVH() Guest { return Guest{elf: counter, step: 1 << 20} }

// Long is the guest for engines that enter it in 64-bit mode.
func Long() Guest { return Guest{elf: counter64, step: 1 << 14} }

const (
	memorySize    = 64 << 20
	counterOffset = 4 << 20 // where the guest counts
	pageSize      = block.DefaultBlockSize
)

// Run runs the contract on an engine with the given accelerator and guest.
func Run(t *testing.T, engine vmm.Engine, accel vmm.Accel, guest Guest) {
	h := harness{engine: engine, accel: accel, guest: guest}
	for name, test := range map[string]func(*testing.T, harness){
		"runs":                       testRuns,
		"stops and goes on":          testStop,
		"thaws where it was frozen":  testThaw,
		"shares memory, writes none": testShare,
		"death is noticed":           testDeath,
		"close leaves nothing":       testClose,
		"a bad kernel is an error":   testBadKernel,
		"a bad state is an error":    testBadState,
		"cancelling ends the start":  testCancel,
	} {
		t.Run(name, func(t *testing.T) { test(t, h) })
	}
}

type harness struct {
	engine vmm.Engine
	accel  vmm.Accel
	guest  Guest
}

func (h harness) config(t *testing.T) vmm.Config {
	c := Config(t, h.guest)
	c.Accel = h.accel
	return c
}

// Config describes the counting machine, with empty memory. Its memory's file is closed, and its folder removed, at the end of the test.
func Config(t *testing.T, guest Guest) vmm.Config {
	t.Helper()
	dir := t.TempDir()
	kernel := filepath.Join(dir, "counter.elf")
	if err := os.WriteFile(kernel, guest.elf, 0o644); err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "vmm") // short: a socket is made in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	if err := os.WriteFile(filepath.Join(dir, "initrd"), []byte("none"), 0o644); err != nil {
		t.Fatal(err)
	}
	return vmm.Config{
		Name: "counter", Arch: "amd64", CPUs: 1, MemoryBytes: memorySize, Network: vmm.NetNone, Dir: run,
		Memory: memoryFile(t), Boot: &vmm.Boot{Kernel: kernel, Initramfs: filepath.Join(dir, "initrd")},
	}
}

func memoryFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "memory")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := errors.Join(f.Truncate(memorySize), f.Chmod(0o666)); err != nil {
		t.Fatal(err)
	}
	return f
}

func (h harness) start(t *testing.T, c vmm.Config) vmm.Machine {
	t.Helper()
	m, err := h.engine.Start(t.Context(), c)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// Count reads the guest's counter.
func Count(t *testing.T, m vmm.Machine) uint32 {
	t.Helper()
	var p [4]byte
	if err := m.ReadMemory(p[:], counterOffset); err != nil {
		t.Fatalf("ReadMemory: %v", err)
	}
	return binary.LittleEndian.Uint32(p[:])
}

// patience is how long a busy machine may take for what takes moments on an idle one.
const patience = 2 * time.Minute

// WaitCount waits until the counter has passed least.
func WaitCount(t *testing.T, m vmm.Machine, least uint32) uint32 {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if n := Count(t, m); n > least {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("the counter stands at %d after %v; log: %q", Count(t, m), patience, m.Log())
		}
	}
}

func testRuns(t *testing.T, h harness) {
	m := h.start(t, h.config(t))
	WaitCount(t, m, h.guest.step)
	for deadline := time.Now().Add(patience); !strings.Contains(m.Log(), ".."); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the guest's serial port is not in the log: %q", m.Log())
		}
	}
	if err := m.ReadMemory(make([]byte, 2), memorySize-1); err == nil {
		t.Error("reading past the end of memory succeeds")
	}
}

func testStop(t *testing.T, h harness) {
	ctx, m := t.Context(), h.start(t, h.config(t))
	WaitCount(t, m, 0)
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	stopped := Count(t, m)
	time.Sleep(20 * time.Millisecond)
	if now := Count(t, m); now != stopped {
		t.Errorf("a stopped machine counts on, from %d to %d", stopped, now)
	}
	if err := m.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	WaitCount(t, m, stopped)
}

// Freeze stops a machine and returns its state and its memory as a file of its own, made of the memory that it started from and of its dirty pages.
func Freeze(t *testing.T, m vmm.Machine, base *os.File) (state []byte, memory *os.File, dirty *block.Set) {
	t.Helper()
	ctx := t.Context()
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	state, err := m.SaveState(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if dirty, err = m.Dirty(ctx); err != nil {
		t.Fatal(err)
	}
	memory = memoryFile(t)
	page := make([]byte, pageSize)
	for n := range int64(memorySize / pageSize) {
		if dirty.Contains(n) {
			err = m.ReadMemory(page, n*pageSize)
		} else {
			_, err = base.ReadAt(page, n*pageSize)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := memory.WriteAt(page, n*pageSize); err != nil {
			t.Fatal(err)
		}
	}
	// What is not dirty must be what the machine sees.
	seen := make([]byte, pageSize)
	for n := range int64(memorySize / pageSize) {
		if err := m.ReadMemory(seen, n*pageSize); err != nil {
			t.Fatal(err)
		}
		if _, err := memory.ReadAt(page, n*pageSize); err != nil {
			t.Fatal(err)
		}
		if string(seen) != string(page) {
			t.Fatalf("page %d was written but is not in the dirty set", n)
		}
	}
	return state, memory, dirty
}

func testThaw(t *testing.T, h harness) {
	c := h.config(t)
	m := h.start(t, c)
	WaitCount(t, m, h.guest.step)
	memory := c.Memory
	for generation := range 3 {
		state, next, dirty := Freeze(t, m, memory)
		frozen := Count(t, m)
		if !dirty.Contains(counterOffset / pageSize) {
			t.Fatalf("generation %d: the counter's page is not dirty", generation)
		}
		if generation > 0 && dirty.Len() > 512 {
			t.Errorf("generation %d: %d pages are dirty, for a guest that writes to a handful", generation, dirty.Len())
		}
		m.Close()
		thawed := h.config(t)
		thawed.Boot, thawed.State, thawed.Memory = nil, state, next
		m, memory = h.start(t, thawed), next
		now := WaitCount(t, m, frozen)
		if now > frozen+1<<31 {
			t.Fatalf("generation %d: the counter went from %d to %d", generation, frozen, now)
		}
	}
}

// testShare runs two machines on one memory file and checks that neither changes it or sees the other.
func testShare(t *testing.T, h harness) {
	c := h.config(t)
	m := h.start(t, c)
	WaitCount(t, m, h.guest.step)
	state, memory, _ := Freeze(t, m, c.Memory)
	m.Close()
	content, err := os.ReadFile(memory.Name())
	if err != nil {
		t.Fatal(err)
	}
	var forks [2]vmm.Machine
	for i := range forks {
		fork := h.config(t)
		fork.Boot, fork.State, fork.Memory = nil, state, memory
		forks[i] = h.start(t, fork)
	}
	first := WaitCount(t, forks[0], binary.LittleEndian.Uint32(content[counterOffset:]))
	if err := forks[1].Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := Count(t, forks[1])
	WaitCount(t, forks[0], first)
	if now := Count(t, forks[1]); now != second {
		t.Error("one fork's counting is seen by the other")
	}
	after, err := os.ReadFile(memory.Name())
	if err != nil {
		t.Fatal(err)
	}
	if string(after) != string(content) {
		t.Error("the shared memory file has changed")
	}
}

func testDeath(t *testing.T, h harness) {
	m := h.start(t, h.config(t))
	if err := m.Err(); err != nil {
		t.Fatalf("Err of a live machine: %v", err)
	}
	if err := syscall.Kill(m.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("the death is not noticed")
	}
	if err := m.Err(); !errors.Is(err, vmm.ErrDead) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Err = %v, want ErrDead and the signal", err)
	}
	if err := m.Stop(t.Context()); !errors.Is(err, vmm.ErrDead) {
		t.Errorf("Stop of a dead machine: %v", err)
	}
}

func testClose(t *testing.T, h harness) {
	before := openFiles(t)
	c := h.config(t)
	defer c.Memory.Close()
	m := h.start(t, c)
	pid := m.PID()
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	if err := m.Err(); err != nil {
		t.Errorf("Err after Close: %v", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the VMM is still there: %v", err)
	}
	if left, err := os.ReadDir(c.Dir); err != nil || len(left) > 0 {
		t.Errorf("left in the machine's folder: %v (%v)", left, err)
	}
	c.Memory.Close()
	after := openFiles(t)
	for deadline := time.Now().Add(patience); after > before && time.Now().Before(deadline); after = openFiles(t) {
		time.Sleep(time.Millisecond) // what reads of the other ends may close its own a moment later
	}
	if after > before {
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func testBadKernel(t *testing.T, h harness) {
	c := h.config(t)
	if err := os.WriteFile(c.Boot.Kernel, []byte("this is no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := h.engine.Start(t.Context(), c)
	if err == nil {
		// Some engines find out only once the machine runs.
		defer m.Close()
		select {
		case <-m.Done():
		case <-time.After(patience):
			t.Fatal("a machine runs on a kernel that is none")
		}
		return
	}
	if !strings.Contains(err.Error(), "counter") {
		t.Errorf("the error does not name the machine: %v", err)
	}
}

func testBadState(t *testing.T, h harness) {
	c := h.config(t)
	c.Boot, c.State = nil, []byte("this is no device state")
	m, err := h.engine.Start(t.Context(), c)
	if err == nil {
		m.Close()
		t.Fatal("a machine starts from a state that is none")
	}
	if !errors.Is(err, vmm.ErrDead) {
		t.Errorf("error is %v, want ErrDead and the VMM's reason", err)
	}
}

func testCancel(t *testing.T, h harness) {
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the user has gone")
	cancel(gone)
	m, err := h.engine.Start(ctx, h.config(t))
	if err == nil {
		m.Close()
		t.Fatal("a cancelled start succeeds")
	}
	if !errors.Is(err, gone) {
		t.Errorf("error is %v, want the cause of the cancellation", err)
	}
}
