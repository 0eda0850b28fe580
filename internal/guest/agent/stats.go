package agent

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
)

// userHz is the unit of /proc/stat on every Linux that Go runs on.
const userHz = 100

// Stats measures the guest. What cannot be read is left zero.
func (s *Server) Stats() api.Stats {
	st := api.Stats{
		AgentVersion: s.options.Version,
		Time:         time.Now().UnixNano(),
		CPUs:         runtime.NumCPU(),
		Processes:    s.table.count(),
		OOMKills:     oomKills(0) + s.options.Kills(),
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		st.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &up) == nil {
		st.Uptime = up.Nano()
	}
	mem := procFields("/proc/meminfo")
	st.MemTotal, st.MemFree = mem["MemTotal"]<<10, mem["MemFree"]<<10
	st.MemAvailable, st.MemCached = mem["MemAvailable"]<<10, (mem["Cached"]+mem["Buffers"])<<10
	st.AgentRSS = procFields("/proc/self/status")["VmRSS"] << 10
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil {
		st.DiskTotal, st.DiskFree = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(data), " ")
		st.Load1, _ = strconv.ParseFloat(first, 64)
	}
	if data, err := os.ReadFile("/proc/stat"); err == nil {
		busy, total := cpuTicks(data)
		st.CPUBusy, st.CPUTotal = busy*int64(time.Second/userHz), total*int64(time.Second/userHz)
	}
	return st
}

// cpuMeter remembers the CPU time of the last reading.
type cpuMeter struct {
	mu          sync.Mutex
	busy, total int64
}

// percent is the share of CPU time that was used since the last call.
func (m *cpuMeter) percent(busy, total int64) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	db, dt := busy-m.busy, total-m.total
	m.busy, m.total = busy, total
	if dt <= 0 || db < 0 {
		return 0
	}
	return float64(db) * 100 / float64(dt)
}

func (s *Server) metrics() api.Metrics {
	st := s.Stats()
	return api.Metrics{
		Timestamp:  st.Time / int64(time.Second),
		CPUCount:   st.CPUs,
		CPUUsedPct: s.cpu.percent(st.CPUBusy, st.CPUTotal),
		MemTotal:   st.MemTotal,
		MemUsed:    st.MemTotal - st.MemAvailable,
		MemCache:   st.MemCached,
		DiskUsed:   st.DiskTotal - st.DiskFree,
		DiskTotal:  st.DiskTotal,
	}
}

// procFields reads the "name: number" lines of a file of /proc.
func procFields(path string) map[string]int64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	fields := map[string]int64{}
	for line := range bytes.Lines(data) {
		name, rest, ok := strings.Cut(string(line), ":")
		if !ok {
			continue
		}
		if f := strings.Fields(rest); len(f) > 0 {
			if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
				fields[name] = n
			}
		}
	}
	return fields
}

// cpuTicks sums up the first line of /proc/stat.
func cpuTicks(data []byte) (busy, total int64) {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	f := strings.Fields(string(line))
	if len(f) < 5 || f[0] != "cpu" {
		return 0, 0
	}
	// Guest time, from the ninth on, is part of user time already.
	for i, v := range f[1:min(len(f), 9)] {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return 0, 0
		}
		total += n
		if i != 3 && i != 4 { // neither idle nor waiting for a disk
			busy += n
		}
	}
	return busy, total
}
