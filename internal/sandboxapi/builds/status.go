package builds

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// Status is how far the build is.
func (b *Build) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// isUnderWay tells whether the build was started and has not ended.
func (b *Build) isUnderWay() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.started && b.status != Ready && b.status != Failed
}

// Report is what there is to tell of a build.
type Report struct {
	Status Status
	Logs   []fleet.LogEntry
	Reason string // of a failure
	Step   string // that failed
}

// levels orders the levels of log entries.
var levels = [...]string{"debug", "info", "warn", "error"}

// Report tells of a build, with at most limit log entries from the one with the given number on, of those at least of the level.
func (b *Build) Report(offset, limit int, level string) Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := Report{Status: b.status, Reason: b.reason, Step: b.step, Logs: []fleet.LogEntry{}}
	least := slices.Index(levels[:], level)
	for i, e := range b.logs {
		if b.dropped+i >= offset && len(r.Logs) < limit && slices.Index(levels[:], e.Level) >= least {
			r.Logs = append(r.Logs, e)
		}
	}
	return r
}

func (b *Build) set(s Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status = s
}

// log adds an entry; step is what it is about.
func (b *Build) log(level, message, step string) {
	e := fleet.LogEntry{Time: time.Now().UTC(), Level: level, Message: strings.ToValidUTF8(message[:min(len(message), maxMessage)], "\ufffd")}
	if step != "" {
		e.Fields = map[string]string{"step": step}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.logs) == maxLogs {
		b.logs = append(b.logs[:0], b.logs[1:]...)
		b.dropped++
	}
	b.logs = append(b.logs, e)
}

// finish ends a build, with the step that has failed if err is not nil.
func (b *Build) finish(err error, step string) {
	if err == nil {
		b.log("info", "the template is ready", "")
		b.set(Ready)
		return
	}
	b.log("error", err.Error(), step)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status, b.reason, b.step = Failed, err.Error(), step
}

// progress turns what a creation tells of itself into log entries.
type progress struct {
	build *Build
	plan  *plan
}

// Phase implements sandbox.Progress.
func (p *progress) Phase(name string) { p.build.log("info", name, "") }

// Advance implements sandbox.Progress.
func (p *progress) Advance(int64, int64) {}

// culprit names the step that an error comes from, as SDKs count: base is where the build starts from, then the instructions from 1, then finalize.
func (p *plan) culprit(err error) string {
	if step := (*sandbox.StepError)(nil); errors.As(err, &step) {
		return p.instruction(step.Number)
	}
	if ready := (*sandbox.ReadyError)(nil); errors.As(err, &ready) {
		return "finalize"
	}
	if start := (*sandbox.StartError)(nil); errors.As(err, &start) {
		return "finalize"
	}
	return "base"
}
