package sandbox

import (
	"strings"
	"testing"
)

// TestGuestIsQuiet looks into a woken guest for what would keep its kernel busy with nobody using it.
func TestGuestIsQuiet(t *testing.T) {
	b := shared(t, nil)
	s := b.resume(t, lab.template)
	for line, want := range map[string]string{
		"cat /sys/block/vda/queue/scheduler":   "[none]",
		"cat /sys/block/vda/queue/write_cache": "write through",
		"cat /proc/sys/vm/stat_interval":       "10",
		"cat /proc/sys/kernel/watchdog":        "0",
		"grep ' / ' /proc/mounts":              "noinit_itable,no_prefetch_block_bitmaps",
		"cat /proc/[0-9]*/comm | grep -q '^ext4lazyinit' && echo zeros || echo nothing is written": "nothing is written",
	} {
		if got := output(t, s, line); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
