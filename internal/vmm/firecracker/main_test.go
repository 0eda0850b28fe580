package firecracker

import (
	"fmt"
	"os"
	"testing"

	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
)

func TestMain(m *testing.M) {
	if os.Getenv(pagerEnv) != "" {
		if err := pages(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if task := os.Getenv(ownerEnv); task != "" {
		if err := owner(task); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	fctest.Main()
	os.Exit(m.Run())
}
