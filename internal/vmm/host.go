package vmm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// HostCPUFlags returns what the host's CPU offers to a guest that sees it as it is, in ascending order.
func HostCPUFlags() ([]string, error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, fmt.Errorf("reading the CPU's flags: %w", err)
	}
	for line := range strings.Lines(string(info)) {
		if name, flags, ok := strings.Cut(line, ":"); ok && (strings.TrimSpace(name) == "flags" || strings.TrimSpace(name) == "Features") {
			return slices.Sorted(slices.Values(strings.Fields(flags))), nil
		}
	}
	return nil, errors.New("reading the CPU's flags: /proc/cpuinfo lists none")
}
