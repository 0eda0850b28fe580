package firecracker

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// realBinary returns a Firecracker to test with: the one that SPORE_FIRECRACKER names, or PATH has.
func realBinary(t *testing.T) string {
	t.Helper()
	needX86(t)
	path := os.Getenv("SPORE_FIRECRACKER")
	if path == "" {
		var err error
		if path, err = exec.LookPath("firecracker"); err != nil {
			t.Skip("no Firecracker here: SPORE_FIRECRACKER names none, and PATH has none")
		}
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("Firecracker is here, but takes KVM: %v", err)
	}
	kvm.Close()
	return path
}

// needServing skips a test where the VMM may not have its memory served.
func needServing(t *testing.T) {
	t.Helper()
	if err := hostUserfaults().allow(unprivileged()); err != nil {
		t.Skip(err)
	}
}

func needX86(t *testing.T) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the counting guest is for x86")
	}
}

// both runs a test on the Firecracker for tests and, where there is one, on a real one.
func both(t *testing.T, test func(*testing.T, *Engine)) {
	t.Run("test", func(t *testing.T) { test(t, testEngine(t, "1.16.1")) })
	t.Run("real", func(t *testing.T) { test(t, New(Programs{Binary: realBinary(t)}, nil)) })
}

// testEngine returns an engine on the Firecracker for tests.
func testEngine(t *testing.T, version string) *Engine {
	t.Helper()
	needX86(t)
	return New(Programs{VersionsDir: fctest.Install(t, "amd64", version), Version: version}, nil)
}

// config describes the counting machine.
func config(t *testing.T) vmm.Config {
	t.Helper()
	c := vmmtest.Config(t, vmmtest.Long())
	c.Accel = vmm.KVM
	return c
}

// thawed describes a machine that goes on from a state.
func thawed(t *testing.T, state []byte, memory *os.File) vmm.Config {
	t.Helper()
	c := config(t)
	c.Boot, c.State, c.Memory = nil, state, memory
	return c
}

func start(t *testing.T, e *Engine, c vmm.Config) *Machine {
	t.Helper()
	m, err := e.Start(t.Context(), c)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { m.Close() })
	return m.(*Machine)
}

// waitDots waits until the guest has written n dots to its serial port.
func waitDots(t *testing.T, m *Machine, n int) {
	t.Helper()
	waitFor(t, "dots on the serial port", func() bool { return strings.Contains(m.Log(), strings.Repeat(".", n)) })
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s after a minute", what)
		}
	}
}

// frozen boots the counting machine, freezes it, and returns what it was frozen as.
func frozen(t *testing.T, e *Engine) (state []byte, memory *os.File, count uint32) {
	t.Helper()
	return frozenOn(t, e, nil)
}

// frozenOn is frozen for a machine with a network.
func frozenOn(t *testing.T, e *Engine, tap vmm.Tap) (state []byte, memory *os.File, count uint32) {
	t.Helper()
	c := config(t)
	c.Tap = tap
	m := start(t, e, c)
	vmmtest.WaitCount(t, m, 1<<14)
	state, memory, _ = vmmtest.Freeze(t, m, c.Memory)
	count = vmmtest.Count(t, m)
	m.Close()
	return state, memory, count
}

// namedTap is a tap interface of which the API server for tests asks no more than the name.
type namedTap string

func (t namedTap) Open() (*os.File, error) { return nil, errors.ErrUnsupported }
func (t namedTap) Name() string            { return string(t) }
func (t namedTap) Namespace() *os.File     { return nil }
