package agentbin

import (
	"bytes"
	"strings"
	"testing"
)

// Both states are right: built, and not built yet. Neither may give out something that is no executable.
func TestAgent(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "riscv64", "../README.md"} {
		b, err := Agent(arch)
		if err == nil && !bytes.HasPrefix(b, []byte("\x7fELF")) {
			t.Errorf("%s: %d bytes that are no executable", arch, len(b))
		}
		if err != nil && arch != "../README.md" && !strings.Contains(err.Error(), "run `make`") {
			t.Errorf("%s: %v tells nobody what to do", arch, err)
		}
	}
	if _, err := Agent("riscv64"); err == nil {
		t.Error("there is an agent for an architecture that has none")
	}
}
