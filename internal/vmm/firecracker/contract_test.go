package firecracker

import (
	"testing"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// TestContract runs the contract on a process that answers as each version of Firecracker would, and refuses what that would refuse.
func TestContract(t *testing.T) {
	needX86(t)
	versions := []string{"1.10.0", "1.11.0", "1.12.1", "1.13.2", "1.14.4", "1.15.1", "1.16.1", "1.17.0-dev"}
	dir := fctest.Install(t, "amd64", versions...)
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			vmmtest.Run(t, New(Programs{VersionsDir: dir, Version: v}, nil), vmm.KVM, vmmtest.Long())
		})
	}
}
