package firecracker

import (
	"testing"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// TestContractReal runs the contract on a real Firecracker.
func TestContractReal(t *testing.T) {
	vmmtest.Run(t, New(Programs{Binary: realBinary(t)}, nil), vmm.KVM, vmmtest.Long())
}
