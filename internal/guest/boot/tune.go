package boot

import (
	"os"
	"path/filepath"
)

// setting is a file of the kernel's and what it is to hold.
type setting struct{ file, value string }

// tuning is how the kernel is set for a machine whose CPUs are emulated, and are woken with all code cold: every path through the kernel that is not taken
// need not be translated. The root disk is a process on the host that has what is written as soon as it says so, and orders requests itself.
func tuning(root string) []setting {
	queue := filepath.Join("/sys/block", filepath.Base(root), "queue")
	return []setting{
		{filepath.Join(queue, "scheduler"), "none"},
		{filepath.Join(queue, "write_cache"), "write through"}, // nothing is left to flush
		{filepath.Join(queue, "wbt_lat_usec"), "0"},            // a timer that slows writers down for the sake of readers
		{"/proc/sys/vm/stat_interval", "10"},                   // seconds between looks for counters to add up; also on an idle CPU
		{"/proc/sys/vm/compaction_proactiveness", "0"},         // no looks twice a second for memory to defragment ahead of need
	}
}

// tune sets what there is to set. Kernels differ in that, and a guest works without.
func tune(settings []setting) {
	for _, s := range settings {
		_ = os.WriteFile(s.file, []byte(s.value), 0)
	}
}
