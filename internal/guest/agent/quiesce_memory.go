package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/guest/api"
)

// memory counts a guest's memory in bytes.
type memory struct {
	total int64 // all RAM that the kernel knows, with what it keeps for itself
	free  int64
}

// readMemory asks the kernel's zones. The total of /proc/meminfo would not do: it leaves out the kernel's own code and tables, and a snapshot does not.
func readMemory() (memory, error) {
	text, err := os.ReadFile("/proc/zoneinfo")
	if err != nil {
		return memory{}, fmt.Errorf("reading the state of memory: %w", err)
	}
	return parseZones(text)
}

// parseZones adds up the pages of all zones.
func parseZones(text []byte) (memory, error) {
	var m memory
	page := int64(os.Getpagesize())
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		var to *int64
		switch {
		case len(fields) == 2 && string(fields[0]) == "present":
			to = &m.total
		case len(fields) == 3 && string(fields[0]) == "pages" && string(fields[1]) == "free":
			to = &m.free
		default:
			continue
		}
		pages, err := strconv.ParseInt(string(fields[len(fields)-1]), 10, 64)
		if err != nil || pages < 0 || pages > 1<<40 {
			return memory{}, fmt.Errorf("malformed line %q in the state of memory", line)
		}
		*to += pages * page
	}
	if m.total == 0 {
		return memory{}, errors.New("the state of memory names no memory")
	}
	return m, nil
}

// Kernel settings behind giveBack.
const (
	dropCachesFile     = "/proc/sys/vm/drop_caches"
	compactFile        = "/proc/sys/vm/compact_memory"
	reportingOrderFile = "/sys/module/page_reporting/parameters/page_reporting_order"
	balloonDriver      = "/sys/bus/virtio/drivers/virtio_balloon"
	interruptsFile     = "/proc/interrupts"
)

// giveBack frees what memory the guest can do without and, where the machine has a balloon that reports free pages, waits until the host has got them
// back.
func giveBack(ctx context.Context, o api.QuiesceOptions) error {
	done := func() error { return nil }
	if o.Compact {
		var err error
		if done, err = reportPages(ctx); err != nil {
			return err
		}
	}
	debug.FreeOSMemory()
	if o.DropCaches {
		// 3: pages, and the directory entries and inodes that pin others.
		if err := os.WriteFile(dropCachesFile, []byte("3"), 0); err != nil {
			return errors.Join(fmt.Errorf("dropping caches: %w", err), done())
		}
	}
	if o.Compact {
		if err := os.WriteFile(compactFile, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("compacting memory: %w", err), done())
		}
	}
	return done()
}

// The kernel starts to report two seconds after memory was freed, and does not say when it is through. But every batch ends in an interrupt.
const (
	reportStart = 2600 * time.Millisecond // no interrupt for so long: there is nothing to report
	reportPause = 60 * time.Millisecond   // no interrupt for so long after another: it is through
)

// reportPages has the kernel report all memory that is freed from now on. The function it returns waits for the end of the report.
//
// By default only blocks of 2 MiB are reported, and none of a zone that is not much larger than a batch of them: half of what an idle guest does not
// use would stay. While the guest runs that is a good rule, so the old value is put back.
func reportPages(ctx context.Context) (wait func() error, err error) {
	nothing := func() error { return nil }
	device, err := balloon(balloonDriver)
	if err != nil || device == "" {
		return nothing, err
	}
	before, err := os.ReadFile(reportingOrderFile)
	if errors.Is(err, os.ErrNotExist) {
		return nothing, nil // the kernel can't report; the snapshot will be larger and no less right
	}
	if err == nil {
		err = os.WriteFile(reportingOrderFile, []byte("0"), 0)
	}
	if err != nil {
		return nil, fmt.Errorf("having free memory reported: %w", err)
	}
	return func() error {
		err := waitReport(ctx, device)
		if back := os.WriteFile(reportingOrderFile, bytes.TrimSpace(before), 0); back != nil {
			err = errors.Join(err, fmt.Errorf("restoring how free memory is reported: %w", back))
		}
		return err
	}, nil
}

func waitReport(ctx context.Context, device string) error {
	count, err := interrupts(device)
	if err != nil {
		return err
	}
	begun, changed := false, time.Now()
	for {
		limit := reportStart
		if begun {
			limit = reportPause
		}
		if time.Since(changed) > limit {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("giving memory back: %w", ctx.Err())
		case <-time.After(reportPause / 4):
		}
		now, err := interrupts(device)
		if err != nil {
			return err
		}
		if now != count {
			count, begun, changed = now, true, time.Now()
		}
	}
}

// balloon returns the name of the machine's balloon device, such as virtio2; empty if it has none.
func balloon(driver string) (string, error) {
	entries, err := os.ReadDir(driver)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking for a balloon: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "virtio") {
			return e.Name(), nil
		}
	}
	return "", nil
}

func interrupts(device string) (int64, error) {
	text, err := os.ReadFile(interruptsFile)
	if err != nil {
		return 0, fmt.Errorf("watching the balloon: %w", err)
	}
	return countInterrupts(text, device), nil
}

// countInterrupts adds up the counts of all CPUs in the lines of one device, which may have several: virtio2-reporting and the like.
func countInterrupts(text []byte, device string) int64 {
	var sum int64
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		owner := string(fields[len(fields)-1])
		if owner != device && !strings.HasPrefix(owner, device+"-") {
			continue
		}
		for _, f := range fields[1:] {
			n, err := strconv.ParseInt(string(f), 10, 64)
			if err != nil {
				break
			}
			sum += n
		}
	}
	return sum
}
