package agent

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"github.com/sporevm/spore/internal/guest/api"
)

// describe says what runs, as far as it fits into a report. A process that has
// ended is left out.
func describe(pids []int) []api.ProcessInfo {
	out := make([]api.ProcessInfo, 0, min(len(pids), api.MaxProcesses))
	for _, pid := range pids {
		if len(out) == api.MaxProcesses {
			break
		}
		if p, ok := describeOne(pid); ok {
			out = append(out, p)
		}
	}
	return out
}

func describeOne(pid int) (api.ProcessInfo, bool) {
	p := api.ProcessInfo{PID: pid}
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return p, false
	}
	for line := range bytes.Lines(status) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		switch fields := strings.Fields(value); {
		case len(fields) == 0:
		case name == "Name":
			p.Command = "[" + strings.TrimSpace(value) + "]" // of one without arguments
		case name == "PPid":
			p.Parent, _ = strconv.Atoi(fields[0])
		case name == "Uid":
			p.UID, _ = strconv.Atoi(fields[0])
		}
	}
	if args, err := os.ReadFile(dir + "/cmdline"); err == nil && len(args) > 0 {
		p.Command = string(bytes.ReplaceAll(bytes.TrimRight(args, "\x00"), []byte{0}, []byte{' '}))
	}
	p.Command = strings.ToValidUTF8(p.Command[:min(len(p.Command), api.MaxCommand)], "\ufffd")
	return p, true
}
