package agent

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// statusText words a wait status as Go and the public API do.
func statusText(s unix.WaitStatus) string {
	switch {
	case s.Exited():
		return "exit status " + strconv.Itoa(s.ExitStatus())
	case s.Signaled():
		text := "signal: " + s.Signal().String()
		if s.CoreDump() {
			text += " (core dumped)"
		}
		return text
	}
	return "unknown status " + strconv.Itoa(int(s))
}
