package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// memory compares what a fork adds to the host's memory, its VMM and its share of the daemon, with what a bare QEMU adds. Both have run one command.
func (s *serviceSuite) memory(ctx context.Context) error {
	d, err := s.daemon(ctx, 0)
	if err != nil {
		return err
	}
	defer d.close()
	var forks Samples
	before, err := pss(os.Getpid())
	if err != nil {
		return err
	}
	var boxes []openapi.Sandbox
	for range pssForks {
		box, _, err := d.create(ctx)
		if err != nil {
			return err
		}
		if err := runTrue(ctx, d.Agent(box)); err != nil {
			return err
		}
		boxes = append(boxes, box)
	}
	after, err := pss(os.Getpid())
	if err != nil {
		return err
	}
	share := float64(max(0, after-before)) / pssForks
	for _, box := range boxes {
		pid, err := d.fleet.VMM(box.SandboxID)
		if err != nil {
			return err
		}
		size, err := pss(pid)
		if err != nil {
			return err
		}
		forks = append(forks, float64(size)+share)
	}
	if err := d.KillAll(ctx); err != nil {
		return err
	}
	bares, err := s.bareMemory(ctx)
	if err != nil {
		return err
	}
	s.report.Add("fork_pss", "bytes", forks)
	s.report.Add("bare_pss", "bytes", bares)
	s.report.Ratio("fork_pss_over_bare", forks.Median(), bares.Median())
	return nil
}

// bareMemory measures as many bare QEMUs, all at once.
func (s *serviceSuite) bareMemory(ctx context.Context) (Samples, error) {
	floor, err := newFloor(ctx, s.Host, s.template, s.scratch)
	if err != nil {
		return nil, err
	}
	var running []*bare
	var clients []*guest.Client
	defer func() {
		for i, b := range running {
			clients[i].Close()
			b.close()
		}
	}()
	for n := range pssForks {
		// Each has a disk of its own, for QEMU locks the file.
		own := *floor
		own.wake.disk = filepath.Join(s.scratch, fmt.Sprint("disk", n))
		if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", floor.wake.disk, own.wake.disk).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("copying the disk: %w: %s", err, out)
		}
		b, client, err := own.woken(ctx)
		if err != nil {
			return nil, err
		}
		running, clients = append(running, b), append(clients, client)
		if err := runTrue(ctx, client); err != nil {
			return nil, err
		}
	}
	var bares Samples
	for _, b := range running {
		size, err := pss(b.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		bares = append(bares, float64(size))
	}
	return bares, nil
}

// pss is the memory of a process in bytes, in which what it shares counts by its share.
func pss(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(lines.Text(), "Pss: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("process %d tells no Pss", pid)
}

// live counts how many forks can live at once: all answer a command when the last has come.
func (s *serviceSuite) live(ctx context.Context) error {
	d, err := s.daemon(ctx, 0)
	if err != nil {
		return err
	}
	defer d.close()
	var boxes []openapi.Sandbox
	begin := time.Now()
	for range liveForks {
		box, _, err := d.create(ctx)
		if err != nil {
			break // no room: the count says so
		}
		boxes = append(boxes, box)
	}
	took := time.Since(begin)
	answering := 0
	for _, box := range boxes {
		if runTrue(ctx, d.Agent(box)) == nil {
			answering++
		}
	}
	s.report.Add("live_forks_created", "ms", Milliseconds(took))
	s.report.Ratio("live_forks", float64(answering), 1)
	return nil
}

// leaks makes, uses and kills sandboxes, and counts what is left of them.
func (s *serviceSuite) leaks(ctx context.Context) error {
	d, err := s.daemon(ctx, 2)
	if err != nil {
		return err
	}
	defer d.close()
	cycle := func() error {
		box, _, err := d.create(ctx)
		if err != nil {
			return err
		}
		if err := runTrue(ctx, d.Agent(box)); err != nil {
			return err
		}
		return d.Kill(ctx, box.SandboxID)
	}
	for range 5 { // what is made once is there
		if err := cycle(); err != nil {
			return err
		}
	}
	before, err := s.holdings(ctx, d)
	if err != nil {
		return err
	}
	for range leakCycles {
		if err := cycle(); err != nil {
			return err
		}
	}
	after, err := s.holdings(ctx, d)
	if err != nil {
		return err
	}
	s.report.Add("leak_descriptors", "descriptors", Samples{float64(after.descriptors - before.descriptors)})
	s.report.Add("leak_processes", "processes", Samples{float64(after.processes - before.processes)})
	s.report.Add("leak_mounts", "mounts", Samples{float64(after.mounts - before.mounts)})
	s.report.Add("leak_files", "files", Samples{float64(after.files - before.files)})
	s.report.Ratio("leaks_200_cycles", float64(after.over(before)), 1)
	return nil
}

// holdings is what a daemon holds of the host.
type holdings struct{ descriptors, processes, mounts, files int }

// over counts what has become more.
func (h holdings) over(before holdings) int {
	return max(0, h.descriptors-before.descriptors) + max(0, h.processes-before.processes) + max(0, h.mounts-before.mounts) + max(0, h.files-before.files)
}

// holdings counts when the pool is full and connections that wait for nothing are closed.
func (s *serviceSuite) holdings(ctx context.Context, d *service) (holdings, error) {
	if err := d.fleet.WaitPools(ctx); err != nil {
		return holdings{}, err
	}
	d.CloseIdle()
	time.Sleep(time.Second) // the server's ends of them
	var h holdings
	count := func(dir string) int {
		list, _ := os.ReadDir(dir)
		return len(list)
	}
	h.descriptors = count("/proc/self/fd")
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return h, err
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list) // a thread that has just ended has none
		h.processes += len(strings.Fields(string(text)))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return h, err
	}
	h.mounts = strings.Count(string(mounts), "\n")
	for _, dir := range []string{s.Host.RunDir, filepath.Join(s.Host.CacheDir, "scratch"), filepath.Join(s.Host.CacheDir, "locks")} {
		h.files += count(dir)
	}
	return h, nil
}

// idle compares a create in a daemon with a thousand sandboxes that sleep with one in a daemon that has none, in turns.
func (s *serviceSuite) idle(ctx context.Context) error {
	empty, err := s.daemon(ctx, 0)
	if err != nil {
		return err
	}
	defer empty.close()
	full, err := s.daemon(ctx, 0)
	if err != nil {
		return err
	}
	defer full.close()
	defer full.KillAll(context.WithoutCancel(ctx))
	var asleep atomic.Int64
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for range idleSandboxes {
		g.Go(func() error {
			box, _, err := full.create(all)
			if err == nil {
				err = full.Pause(all, box.SandboxID)
			}
			s.Progress.Advance(asleep.Add(1), idleSandboxes)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var with, without Samples
	for i := range 2*s.Iterations + 1 {
		for _, d := range []struct {
			*service
			samples *Samples
		}{{empty, &without}, {full, &with}} {
			box, took, err := d.create(ctx)
			if err != nil {
				return err
			}
			if err := d.Kill(ctx, box.SandboxID); err != nil {
				return err
			}
			if i > 0 {
				*d.samples = append(*d.samples, ms(took))
			}
		}
	}
	s.report.Add("create_with_1000_idle", "ms", with)
	s.report.Add("create_with_none", "ms", without)
	s.report.Ratio("create_with_1000_idle_over_none", with.Median(), without.Median())
	return nil
}
