package firecracker

import (
	"os"
	"testing"

	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
)

func TestMain(m *testing.M) {
	fctest.Main()
	os.Exit(m.Run())
}
