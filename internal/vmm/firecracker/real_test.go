package firecracker

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// realBinary returns a Firecracker to test with: the one that SPORE_FIRECRACKER names, or PATH has.
func realBinary(t *testing.T) string {
	t.Helper()
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

// TestContractReal runs the contract on a real Firecracker.
func TestContractReal(t *testing.T) {
	engine := New(Programs{Binary: realBinary(t)}, nil)
	vmmtest.Run(t, engine, vmm.KVM, vmmtest.Long())
}

var _ = errors.Is
var _ = strings.Cut
