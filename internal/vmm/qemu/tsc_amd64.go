package qemu

import (
	"math"
	"time"
)

func readTSC() uint64

// hostTSCKHz measures the frequency of the time-stamp counter. Under emulation the guest's counter is the host's.
func hostTSCKHz() int64 {
	const interval = 30 * time.Millisecond
	start, before := sampleTSC()
	time.Sleep(interval)
	end, after := sampleTSC()
	return int64(math.Round(float64(after-before) / (float64(end.Sub(start)) / float64(time.Millisecond))))
}

// sampleTSC reads clock and counter together: the tightest of several tries, since any of them may be interrupted half way.
func sampleTSC() (at time.Time, tsc uint64) {
	best := uint64(math.MaxUint64)
	for range 50 {
		before := readTSC()
		now := time.Now()
		after := readTSC()
		if after-before < best {
			best, at, tsc = after-before, now, before+(after-before)/2
		}
	}
	return at, tsc
}
