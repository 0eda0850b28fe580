package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
)

// The machines of the engine suite, and what a guest writes before a pause.
const (
	smallMemory = 512 << 20
	largeMemory = 2 << 30
	engineDisk  = 1000 << 20
	written     = 8 << 20
	generations = 100
	transfer    = 64 << 20
)

// partTimeout keeps a suite from waiting for ever for a guest that hangs; the longest part takes some three minutes on a busy host.
const partTimeout = 10 * time.Minute

// Engine measures creating, waking and pausing machines, each against its baseline in the same run. The baselines are in bare.go and floor.go.
func Engine(ctx context.Context, e Env) (_ *Report, err error) {
	if e.Arch != "amd64" {
		return nil, fmt.Errorf("the engine suite's baselines are written for amd64 guests, not for %s", e.Arch)
	}
	scratch, remove, err := e.Host.WorkDir("bench-")
	if err != nil {
		return nil, err
	}
	defer remove()
	s := &engineSuite{Env: e, scratch: scratch, report: NewReport("engine")}
	defer func() { err = errors.Join(err, s.cleanUp()) }()
	err = e.measure(ctx, partTimeout, []part{
		{"create", s.create},
		{"resume and its floor", s.resume},
		{"cold boot", s.coldBoot},
		{"full restore", s.fullRestore},
		{"pause", s.pause},
		{"file transfer", s.transfer},
		{"100 generations", s.depth},
	})
	return s.report, err
}

type engineSuite struct {
	Env
	scratch string
	report  *Report

	small    *snapshot.Snapshot // 512 MiB
	made     []uuid.UUID        // the machines, whose descendants are the suite's too
	resumeMS float64            // median of a resume, the denominator of two ratios
}

// cleanUp removes the suite's snapshots.
func (s *engineSuite) cleanUp() error {
	var errs []error
	if s.small != nil {
		errs = append(errs, s.small.Close())
	}
	for _, id := range s.made {
		_, err := s.Host.Snapshots.Remove(context.Background(), id, true)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// machine creates a snapshot of the suite's image.
func (s *engineSuite) machine(ctx context.Context, memory int64) (*snapshot.Snapshot, error) {
	snap, err := s.Host.Create(ctx, sandbox.CreateSpec{
		Image: s.Image, Arch: s.Arch, CPUs: 1, MemoryBytes: memory, DiskBytes: engineDisk, Accel: s.Accel,
		NoPrefetch: true, // it is woken here, and from nowhere else
	}, sandbox.NoProgress{})
	if err == nil {
		s.made = append(s.made, snap.ID())
	}
	return snap, err
}

// create measures the first snapshot of a machine: what it stores against what the guest itself counts as used.
func (s *engineSuite) create(ctx context.Context) error {
	begin := time.Now()
	snap, err := s.machine(ctx, smallMemory)
	if err != nil {
		return err
	}
	s.small = snap
	s.report.Add("create_512m", "ms", Milliseconds(time.Since(begin)))
	used, stored := float64(snap.Metadata().GuestUsed), float64(snap.Memory().Header().Usage().Data())
	s.report.Add("memory_used", "bytes", Samples{used})
	s.report.Add("memory_stored", "bytes", Samples{stored})
	s.report.Ratio("memory_stored_over_used", stored, used)
	return nil
}

// wake resumes a snapshot and runs a first command in it.
func (s *engineSuite) wake(ctx context.Context, snap *snapshot.Snapshot) (_ *sandbox.Sandbox, firstExec time.Duration, err error) {
	box, err := s.Host.Resume(ctx, snap, sandbox.ResumeOptions{}, sandbox.NoProgress{})
	if err != nil {
		return nil, 0, err
	}
	begin := time.Now()
	if err := run(ctx, box, "true"); err != nil {
		return nil, 0, errors.Join(err, box.Close())
	}
	return box, time.Since(begin), nil
}

// run runs a shell line in a sandbox.
func run(ctx context.Context, box *sandbox.Sandbox, line string) error {
	var output bytes.Buffer
	status, err := box.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", line}, Stdout: &output, Stderr: &output})
	if err != nil {
		return fmt.Errorf("running %q: %w", line, err)
	}
	if !status.Success() {
		return fmt.Errorf("running %q: %v\n%s", line, status, output.String())
	}
	return nil
}

// resume measures our resume and its floor in turns, so that a noisy neighbour hits both.
func (s *engineSuite) resume(ctx context.Context) error {
	floor, err := s.newFloor(ctx)
	if err != nil {
		return err
	}
	var total, spawn, load, wake, exec, bareTotal, bareExec Samples
	for i := range s.Iterations + 1 {
		box, first, err := s.wake(ctx, s.small)
		if err != nil {
			return err
		}
		p := box.Phases()
		if err := box.Close(); err != nil {
			return err
		}
		answer, bareFirst, err := floor.resume(ctx)
		if err != nil {
			return err
		}
		if i == 0 {
			continue // warms the page cache for both
		}
		total, spawn, load = append(total, ms(p.Total)), append(spawn, ms(p.Spawn)), append(load, ms(p.Load))
		wake, exec = append(wake, ms(p.Wake)), append(exec, ms(first))
		bareTotal, bareExec = append(bareTotal, ms(answer)), append(bareExec, ms(bareFirst))
	}
	s.resumeMS = total.Median()
	s.report.Add("resume_spawn", "ms", spawn)
	s.report.Add("resume_load", "ms", load)
	s.report.Add("resume_wake", "ms", wake)
	s.report.Add("resume_first_exec", "ms", exec)
	s.report.Add("resume_total", "ms", total)
	s.report.Add("floor_total", "ms", bareTotal)
	s.report.Add("floor_first_exec", "ms", bareExec)
	s.report.Ratio("resume_over_floor", total.Median(), bareTotal.Median())
	return nil
}

// coldBoot measures how long the same machine takes from nothing to the same answer.
func (s *engineSuite) coldBoot(ctx context.Context) error {
	floor, err := s.newFloor(ctx)
	if err != nil {
		return err
	}
	var boots Samples
	for range s.Iterations {
		took, err := floor.coldBoot(ctx)
		if err != nil {
			return err
		}
		boots = append(boots, ms(took))
	}
	s.report.Add("cold_boot", "ms", boots)
	s.report.Ratio("cold_boot_over_resume", boots.Median(), s.resumeMS)
	return nil
}

// fullRestore measures QEMU's own way: all of memory through a migration stream.
func (s *engineSuite) fullRestore(ctx context.Context) error {
	floor, err := s.newFloor(ctx)
	if err != nil {
		return err
	}
	stream := filepath.Join(s.scratch, "stream")
	if err := floor.saveStream(ctx, stream); err != nil {
		return err
	}
	var restores Samples
	for range s.Iterations {
		took, err := floor.restoreStream(ctx, stream)
		if err != nil {
			return err
		}
		restores = append(restores, ms(took))
	}
	s.report.Add("qemu_full_restore", "ms", restores)
	s.report.Ratio("qemu_full_restore_over_resume", restores.Median(), s.resumeMS)
	return os.Remove(stream)
}

// pause measures pauses after the guest has written 8 MiB, on a small and on a large machine in turns.
func (s *engineSuite) pause(ctx context.Context) error {
	large, err := s.machine(ctx, largeMemory)
	if err != nil {
		return err
	}
	defer large.Close()
	var stopped, total, largeTotal, stored Samples
	for range s.Iterations {
		small, err := s.pauseOnce(ctx, s.small)
		if err != nil {
			return err
		}
		big, err := s.pauseOnce(ctx, large)
		if err != nil {
			return err
		}
		stopped, total = append(stopped, ms(small.Stopped)), append(total, ms(small.Total))
		largeTotal = append(largeTotal, ms(big.Total))
		stored = append(stored, float64(small.MemoryBytes+small.DiskBytes))
	}
	s.report.Add("pause_stopped", "ms", stopped)
	s.report.Add("pause_total", "ms", total)
	s.report.Add("pause_total_2g", "ms", largeTotal)
	s.report.Add("pause_bytes", "bytes", stored)
	s.report.Ratio("pause_stop_ms", stopped.Median(), 1)
	s.report.Ratio("pause_bytes_over_changed", stored.Median(), written)
	s.report.Ratio("pause_2g_over_512m", largeTotal.Median(), total.Median())
	return nil
}

// pauseOnce wakes a snapshot, freezes it again after a command has settled so that what a first command dirties is not counted, has 8 MiB written, and pauses.
func (s *engineSuite) pauseOnce(ctx context.Context, snap *snapshot.Snapshot) (sandbox.PauseReport, error) {
	box, _, err := s.wake(ctx, snap)
	if err != nil {
		return sandbox.PauseReport{}, err
	}
	defer box.Close()
	warm, _, err := box.Pause(ctx, sandbox.PauseSpec{KeepRunning: true}, sandbox.NoProgress{})
	if err != nil {
		return sandbox.PauseReport{}, err
	}
	defer warm.Close()
	if err := run(ctx, box, fmt.Sprintf("dd if=/dev/urandom of=/dev/shm/written bs=64k count=%d 2>/dev/null", written>>16)); err != nil {
		return sandbox.PauseReport{}, err
	}
	child, report, err := box.Pause(ctx, sandbox.PauseSpec{}, sandbox.NoProgress{})
	if err != nil {
		return report, err
	}
	return report, errors.Join(child.Close(), box.Close())
}

// depth pauses and wakes a machine a hundred times, then compares the last generation with the first.
func (s *engineSuite) depth(ctx context.Context) error {
	last := s.small
	for range generations - 1 {
		box, err := s.Host.Resume(ctx, last, sandbox.ResumeOptions{}, sandbox.NoProgress{})
		if err != nil {
			return err
		}
		err = run(ctx, box, "echo generation >>/generations")
		if err != nil {
			return errors.Join(err, box.Close())
		}
		child, _, err := box.Pause(ctx, sandbox.PauseSpec{}, sandbox.NoProgress{})
		if err := errors.Join(err, box.Close()); err != nil {
			return err
		}
		if last != s.small {
			last.Close()
		}
		last = child
	}
	defer last.Close()
	var first, hundredth Samples
	for i := range s.Iterations + 1 {
		for _, deep := range []bool{false, true} {
			snap, into := s.small, &first
			if deep {
				snap, into = last, &hundredth
			}
			took, err := s.openAndWake(ctx, snap.ID())
			if err != nil {
				return err
			}
			if i > 0 {
				*into = append(*into, ms(took))
			}
		}
	}
	s.report.Add("resume_generation_1", "ms", first)
	s.report.Add("resume_generation_100", "ms", hundredth)
	s.report.Ratio("resume_100_over_1", hundredth.Median(), first.Median())
	deep, err := s.openReads(ctx, last.ID())
	if err != nil {
		return err
	}
	shallow, err := s.openReads(ctx, s.small.ID())
	if err != nil {
		return err
	}
	s.report.Ratio("open_reads_100_over_1", deep, shallow)
	return nil
}

// openReads opens a snapshot as anybody would and counts the reads.
func (s *engineSuite) openReads(ctx context.Context, id uuid.UUID) (float64, error) {
	snap, err := s.Host.Snapshots.OpenID(ctx, id)
	if err != nil {
		return 0, err
	}
	return float64(snap.OpenReads()), snap.Close()
}

// openAndWake measures a resume that begins with an id.
func (s *engineSuite) openAndWake(ctx context.Context, id uuid.UUID) (time.Duration, error) {
	begin := time.Now()
	snap, err := s.Host.Snapshots.OpenID(ctx, id)
	if err != nil {
		return 0, err
	}
	defer snap.Close()
	box, err := s.Host.Resume(ctx, snap, sandbox.ResumeOptions{}, sandbox.NoProgress{})
	if err != nil {
		return 0, err
	}
	return time.Since(begin), box.Close()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
