package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/pager/pagertest"
)

// windows is one page of each part of the memory that is filled at once, in an order of the seed.
func windows(seed int64, threads int, times bool) pagertest.Touch {
	return pagertest.Touch{To: pagedBytes, Step: pager.FaultAround, Seed: seed, Threads: threads, Times: times}
}

// pages is every page, in an order of the seed.
func pages(seed int64) pagertest.Touch {
	return pagertest.Touch{To: pagedBytes, Step: pagedPage, Seed: seed}
}

// cold measures faults of a template's first fork: each has a frame read and verified. The fork stays, and its pager with it.
func (s *pagerSuite) cold(ctx context.Context) error {
	c, _, err := s.fork(ctx)
	if err != nil {
		return err
	}
	touched, err := c.Touch(windows(1, 1, true))
	c.Close() // its fork counts on
	if err != nil {
		return err
	}
	s.report.Add("fault_cold", "µs", microseconds(touched.Times))
	return nil
}

func microseconds(d []time.Duration) Samples {
	out := make(Samples, len(d))
	for i := range d {
		out[i] = float64(d[i]) / float64(time.Microsecond)
	}
	return out
}

// fault measures how long a machine waits for a page, one at a time.
func (s *pagerSuite) fault(ctx context.Context) error {
	var ours, bare []time.Duration
	for i := range s.Iterations {
		seed := int64(i + 1)
		c, end, err := s.fork(ctx)
		if err != nil {
			return err
		}
		touched, err := c.Touch(windows(seed, 1, true))
		if err := errors.Join(err, end()); err != nil {
			return err
		}
		ours = append(ours, touched.Times...)
		if c, _, err = s.bareServed(false); err != nil {
			return err
		}
		touched, err = c.Touch(windows(seed, 1, true))
		c.Close()
		if err != nil {
			return err
		}
		bare = append(bare, touched.Times...)
	}
	mine, theirs := microseconds(ours), microseconds(bare)
	s.report.Add("fault", "µs", mine)
	s.report.Add("bare_fault", "µs", theirs)
	s.report.Ratio("fault_p50_over_bare", mine.Median(), theirs.Median())
	return nil
}

// fill measures how fast memory is filled that nobody touches meanwhile.
func (s *pagerSuite) fill(ctx context.Context) error {
	var ours, bare []time.Duration
	for range s.Iterations {
		took, err := s.filled(ctx)
		if err != nil {
			return err
		}
		ours = append(ours, took)
		c, took, err := s.bareServed(true)
		if err != nil {
			return err
		}
		c.Close()
		bare = append(bare, took)
	}
	mine, theirs := throughput(pagedBytes, ours), throughput(pagedBytes, bare)
	s.report.Add("bulk_fill", "MiB/s", mine)
	s.report.Add("bare_fill", "MiB/s", theirs)
	s.report.Ratio("bulk_fill_over_bare", mine.Median(), theirs.Median())
	return nil
}

// filled has a prefetch list of everything replayed, and returns how long that took.
func (s *pagerSuite) filled(ctx context.Context) (time.Duration, error) {
	before, err := s.tracker.Stats(ctx, s.template)
	if err != nil {
		return 0, err
	}
	_, end, err := s.fork(ctx, pager.Range{Length: pagedBytes})
	if err != nil {
		return 0, err
	}
	for {
		after, err := s.tracker.Stats(ctx, s.template)
		if err != nil || after.Prefetching > before.Prefetching {
			return after.Prefetching - before.Prefetching, errors.Join(err, end())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// prefetch measures the first touch of all of memory in random order, with and without the list of an earlier run's touches. A machine does not wait for
// prefetching: it starts at once.
func (s *pagerSuite) prefetch(ctx context.Context) error {
	var without, with []time.Duration
	for i := range s.Iterations {
		seed := int64(i + 1)
		c, end, err := s.fork(ctx)
		if err != nil {
			return err
		}
		touched, err := c.Touch(pages(seed))
		var list []pager.Range
		if err == nil {
			list, err = s.tracker.Touched(ctx, strconv.Itoa(s.forks))
		}
		if err := errors.Join(err, end()); err != nil {
			return err
		}
		without = append(without, touched.Took)
		if c, end, err = s.fork(ctx, list...); err != nil {
			return err
		}
		touched, err = c.Touch(pages(seed))
		if err := errors.Join(err, end()); err != nil {
			return err
		}
		with = append(with, touched.Took)
	}
	slow, fast := Milliseconds(without...), Milliseconds(with...)
	s.report.Add("first_touch", "ms", slow)
	s.report.Add("first_touch_prefetched", "ms", fast)
	s.report.Ratio("no_prefetch_over_prefetch", slow.Median(), fast.Median())
	return nil
}

// scaling measures the faults of eight threads, with machines and pager on one CPU and on two: threads of one machine, and of four forks.
func (s *pagerSuite) scaling(ctx context.Context) error {
	stats, err := s.tracker.Stats(ctx, s.template)
	if err != nil {
		return err
	}
	const forks = 4
	for _, c := range []struct {
		machines int
		name     string
	}{{1, "fault"}, {forks, "fork_fault"}} {
		var took [3]Samples
		for i := range s.Iterations {
			for cpus := 1; cpus <= 2; cpus++ {
				rate, err := s.faultRate(ctx, stats.PID, cpus, c.machines, int64(i+1))
				if err != nil {
					return err
				}
				took[cpus] = append(took[cpus], rate)
			}
		}
		s.report.Add(c.name+"s_1_core", "1000/s", took[1])
		s.report.Add(c.name+"s_2_cores", "1000/s", took[2])
		s.report.Ratio(c.name+"_scaling_2_cores", took[2].Median(), took[1].Median())
	}
	return pin(stats.PID, 0)
}

// faultRate is how many thousand faults a second of some new machines, which have eight threads together, are answered.
func (s *pagerSuite) faultRate(ctx context.Context, pid, cpus, machines int, seed int64) (rate float64, err error) {
	if err := pin(pid, cpus); err != nil {
		return 0, err
	}
	clients := make([]*pagertest.Client, machines)
	for i := range clients {
		c, end, err := s.fork(ctx)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, end()) }()
		if err := pin(c.PID(), cpus); err != nil {
			return 0, err
		}
		clients[i] = c
	}
	took := make([]time.Duration, machines)
	var group errgroup.Group
	for i, c := range clients {
		group.Go(func() error {
			touched, err := c.Touch(windows(seed+int64(i), pagedVCPUs/machines, false))
			took[i] = touched.Took
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return float64(machines*(pagedBytes/pager.FaultAround)) / slices.Max(took).Seconds() / 1000, nil
}

// resident measures the pager's own memory with one fork and with twenty-five, which have all touched the same.
func (s *pagerSuite) resident(ctx context.Context) error {
	// A pager whose cache is not full yet.
	if err := s.tracker.CloseAll(); err != nil {
		return err
	}
	var err error
	if s.tracker, err = s.newTracker(); err != nil {
		return err
	}
	for i := range pagedForks {
		c, _, err := s.fork(ctx) // all of them stay to the suite's end
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Touch(pagertest.Touch{To: pagedShare, Step: pagedPage, Seed: int64(i + 1), Threads: 2}); err != nil {
			return err
		}
		if i != 0 && i != pagedForks-1 {
			continue
		}
		stats, err := s.tracker.Stats(ctx, s.template)
		if err != nil {
			return err
		}
		rss, err := residentBytes(stats.PID)
		if err != nil {
			return err
		}
		s.report.Add(fmt.Sprintf("pager_rss_%d", i+1), "bytes", Samples{rss})
		if i > 0 {
			s.report.Ratio("pager_rss_25_over_1", rss, s.report.Results[len(s.report.Results)-2].P50)
		}
	}
	return nil
}

// residentBytes is the memory that a process has for itself.
func residentBytes(pid int) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("process %d does not say how much memory it has", pid)
}
