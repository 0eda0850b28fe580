package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/snapshot"
)

// Limits of a healthy wake.
const (
	clockLimit  = 50 * time.Millisecond // how far a guest's clock may be off
	refreezeMax = 16 << 20              // bytes of memory that a machine may change that was woken and frozen again
	canaryFile  = "/dev/shm/spore-canary"
	canaryTries = 5 // of the clock: an answer that was long under way says nothing
)

// Check is one thing that a canary looked at.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // what was found
}

// Canary wakes a snapshot and tells whether that does what it should: it continues a machine instead of booting one, two wakes share no secrets, clocks are
// right, and a machine that is frozen again has hardly changed. It publishes a child of the snapshot for that, and removes it.
//
// The error is of what kept it from looking; what it found is in the checks.
func (h *Host) Canary(ctx context.Context, snap *snapshot.Snapshot, p Progress) (checks []Check, err error) {
	if snap.Memory() == nil {
		return []Check{{"machine", true, "it is a disk alone: there is nothing to wake"}}, nil
	}
	c := &canary{host: h, progress: p}
	planted, err := c.plant(ctx, snap)
	if err != nil {
		return nil, fmt.Errorf("the canary of snapshot %s: %w", snap.ID(), err)
	}
	defer func() {
		id := planted.ID()
		_, gone := h.Snapshots.Remove(context.WithoutCancel(ctx), id, true)
		err = errors.Join(err, gone)
	}()
	defer planted.Close() // before it is removed
	if err := c.look(ctx, planted); err != nil {
		return c.checks, fmt.Errorf("the canary of snapshot %s: %w", snap.ID(), err)
	}
	return c.checks, nil
}

type canary struct {
	host     *Host
	progress Progress
	checks   []Check

	nonce  string        // in the RAM of the machine, and nowhere else
	boot   string        // the kernel's own, made when it booted
	uptime time.Duration // of the machine when it was frozen: a counter in its RAM
}

func (c *canary) add(name string, ok bool, format string, args ...any) {
	c.checks = append(c.checks, Check{name, ok, fmt.Sprintf(format, args...)})
}

// plant wakes a snapshot, leaves a nonce in its RAM, and freezes it.
func (c *canary) plant(ctx context.Context, snap *snapshot.Snapshot) (_ *snapshot.Snapshot, err error) {
	s, err := c.host.Resume(ctx, snap, ResumeOptions{}, c.progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	raw := make([]byte, 16)
	rand.Read(raw)
	c.nonce = hex.EncodeToString(raw)
	if err := s.Agent().WriteFile(ctx, canaryFile, strings.NewReader(c.nonce), guest.WriteOptions{}); err != nil {
		return nil, err
	}
	mounts, err := read(ctx, s, "/proc/mounts", 1<<20)
	if err != nil {
		return nil, err
	}
	inRAM := false
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		inRAM = inRAM || len(fields) > 2 && strings.HasPrefix(canaryFile, fields[1]+"/") && fields[2] == "tmpfs"
	}
	if !inRAM {
		return nil, fmt.Errorf("%s of the guest is not in its memory", canaryFile)
	}
	if c.boot, err = read(ctx, s, "/proc/sys/kernel/random/boot_id", 64); err != nil {
		return nil, err
	}
	stats, err := s.Agent().Stats(ctx)
	if err != nil {
		return nil, err
	}
	c.uptime = time.Duration(stats.Uptime)
	planted, _, err := s.Pause(ctx, PauseSpec{ID: uuid.New()}, c.progress)
	return planted, err
}

// read reads at most limit bytes of a guest's file.
func read(ctx context.Context, s *Sandbox, path string, limit int64) (string, error) {
	r, _, err := s.Agent().ReadFile(ctx, path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit))
	return string(data), err
}

// secrets are what no two wakes may share.
type secrets struct{ urandom, uuid, machineID, hostname string }

// look wakes the planted machine twice.
func (c *canary) look(ctx context.Context, planted *snapshot.Snapshot) error {
	var seen [2]secrets
	for i := range seen {
		var err error
		if seen[i], err = c.wake(ctx, planted, i == 1); err != nil {
			return err
		}
	}
	a, b := seen[0], seen[1]
	for _, s := range []struct{ name, a, b string }{
		{"random numbers differ", a.urandom, b.urandom}, {"UUIDs differ", a.uuid, b.uuid}, {"machine ids differ", a.machineID, b.machineID}, {"host names differ", a.hostname, b.hostname},
	} {
		if s.a == "" && s.b == "" {
			c.add(s.name, true, "the image has none")
			continue
		}
		c.add(s.name, s.a != s.b, "%s and %s", brief(s.a), brief(s.b))
	}
	return nil
}

// brief is enough of a secret to tell two apart.
func brief(s string) string {
	if !isPrintable(s) {
		s = hex.EncodeToString([]byte(s))
	}
	return s[:min(len(s), 12)]
}

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// wake wakes the planted machine once, and freezes it again at the end if it is the last.
func (c *canary) wake(ctx context.Context, planted *snapshot.Snapshot, last bool) (found secrets, err error) {
	s, err := c.host.Resume(ctx, planted, ResumeOptions{}, c.progress)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if last {
		return found, errors.Join(c.secrets(ctx, s, &found), c.refreeze(ctx, planted))
	}
	nonce, err := read(ctx, s, canaryFile, 64)
	if err != nil {
		return found, err
	}
	c.add("memory was restored", nonce == c.nonce, "the nonce is %s, %s was left", brief(nonce), brief(c.nonce))
	boot, err := read(ctx, s, "/proc/sys/kernel/random/boot_id", 64)
	if err != nil {
		return found, err
	}
	stats, err := s.Agent().Stats(ctx)
	if err != nil {
		return found, err
	}
	up := time.Duration(stats.Uptime)
	c.add("it was not booted", boot == c.boot && up >= c.uptime, "up for %v, frozen after %v", up.Round(time.Millisecond), c.uptime.Round(time.Millisecond))
	off, err := clock(ctx, s)
	if err != nil {
		return found, err
	}
	c.add("the clock is right", off <= max(clockLimit, s.Agent().ClockSlack()), "off by %v, the time that asking takes left aside", off.Round(time.Millisecond))
	return found, c.secrets(ctx, s, &found)
}

// clock returns how far the guest's clock is off at least: its answer is of some moment between the question and its arrival.
func clock(ctx context.Context, s *Sandbox) (time.Duration, error) {
	best := time.Duration(1<<63 - 1)
	for range canaryTries {
		before := time.Now()
		stats, err := s.Agent().Stats(ctx)
		if err != nil {
			return 0, err
		}
		after, guest := time.Now(), time.Unix(0, stats.Time)
		best = min(best, max(before.Sub(guest), guest.Sub(after), 0))
	}
	return best, nil
}

// secrets asks a woken machine for what it should have alone.
func (c *canary) secrets(ctx context.Context, s *Sandbox, found *secrets) error {
	var random bytes.Buffer
	if p, err := s.Agent().Start(ctx, guest.Command{Args: []string{"head", "-c", "16", "/dev/urandom"}, Stdout: &random}); err == nil { // an image may have no head
		if _, err := p.Wait(); err != nil {
			return err
		}
		found.urandom = random.String()
	}
	for _, f := range []struct {
		path string
		to   *string
	}{
		{"/proc/sys/kernel/random/uuid", &found.uuid}, {"/etc/machine-id", &found.machineID}, {"/proc/sys/kernel/hostname", &found.hostname},
	} {
		text, err := read(ctx, s, f.path, 32)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		*f.to = string(bytes.TrimSpace([]byte(text)))
	}
	return nil
}

// refreeze wakes the planted machine and freezes it at once.
func (c *canary) refreeze(ctx context.Context, planted *snapshot.Snapshot) (err error) {
	s, err := c.host.Resume(ctx, planted, ResumeOptions{}, c.progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	again, report, err := s.Pause(ctx, PauseSpec{ID: uuid.New()}, c.progress)
	if err != nil {
		return err
	}
	c.add("frozen again it is the same", report.MemoryBytes <= refreezeMax, "%d pages of 4 KiB differ", report.MemoryBytes/4096)
	err = again.Close()
	_, gone := c.host.Snapshots.Remove(context.WithoutCancel(ctx), again.ID(), false)
	return errors.Join(err, gone)
}
