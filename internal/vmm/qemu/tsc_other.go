//go:build !amd64

package qemu

// hostTSCKHz is 0: only amd64 has a time-stamp counter that guests see.
func hostTSCKHz() int64 { return 0 }
