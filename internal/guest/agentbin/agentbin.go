// Package agentbin carries the built spore-agent inside the spore binary, one for each architecture of guests.
package agentbin

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

//go:embed bin
var built embed.FS

// Agent returns the agent's executable for guests of an architecture (amd64 or arm64, as Go calls them).
func Agent(arch string) ([]byte, error) {
	b, err := built.ReadFile("bin/spore-agent-" + arch)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this spore was built without the agent for %s guests: run `make` instead of `go build`", arch)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the built-in agent: %w", err)
	}
	return b, nil
}
