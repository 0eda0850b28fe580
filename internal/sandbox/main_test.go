package sandbox

import (
	"fmt"
	"os"
	"testing"

	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
)

// childEnv makes the test binary another process: one that creates or pauses a machine, and may die of it.
const childEnv = "SPORE_SANDBOX_TEST_CHILD"

func TestMain(m *testing.M) {
	fctest.Main()
	if task := os.Getenv(childEnv); task != "" {
		if err := childMain(task); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if task := os.Getenv(memoryEnv); task != "" {
		if err := memoryMain(task); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if err := lab.remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
