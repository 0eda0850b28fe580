package boot

import (
	"fmt"
	"os"
	"strings"
)

// The agent's own parameters on the kernel's command line. All are optional.
const (
	ParamRoot     = "spore.root="     // block device of the root file system; "none" stays in the initramfs (default /dev/vda)
	ParamRootType = "spore.roottype=" // its file system type (default ext4)
	ParamReadOnly = "spore.ro"        // mount it read-only
	ParamPort     = "spore.port="     // name of the virtio-serial port to the host (default agent), or vsock:PORT
)

// Args are the agent's parameters, defaults filled in.
type Args struct {
	Root     string // empty: stay in the initramfs
	RootType string
	ReadOnly bool
	Port     string
}

func readArgs(path string) (Args, error) {
	line, err := os.ReadFile(path)
	if err != nil {
		return Args{}, fmt.Errorf("reading the kernel's command line: %w", err)
	}
	return parseArgs(string(line)), nil
}

// parseArgs picks the agent's parameters out of a kernel command line; the last of several wins, as in the kernel. None of them can hold blanks, so
// the kernel's quoting rules don't matter here.
func parseArgs(line string) Args {
	a := Args{Root: "/dev/vda", RootType: "ext4", Port: "agent"}
	for _, field := range strings.Fields(line) {
		switch {
		case field == ParamReadOnly:
			a.ReadOnly = true
		case strings.HasPrefix(field, ParamRoot):
			a.Root = strings.TrimPrefix(field, ParamRoot)
		case strings.HasPrefix(field, ParamRootType):
			a.RootType = strings.TrimPrefix(field, ParamRootType)
		case strings.HasPrefix(field, ParamPort):
			a.Port = strings.TrimPrefix(field, ParamPort)
		}
	}
	if a.Root == "none" {
		a.Root = ""
	}
	return a
}
