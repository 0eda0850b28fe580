package cli

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// plainEvery is how often a log without a terminal hears about long work.
const plainEvery = 5 * time.Second

// slow is what a user wonders about.
const slow = 2 * time.Second

// display shows how far work is: bars on a terminal, a line for each finished phase elsewhere. It implements sandbox.Progress.
// The zero value shows nothing.
type display struct {
	mu    sync.Mutex
	out   io.Writer // nil: silent
	bars  *mpb.Progress
	bar   *mpb.Bar
	took  *atomic.Int64 // nanoseconds that the bar's phase took; 0 while it lasts
	phase string
	begin time.Time
	told  time.Time
	done  int64
	total int64

	slowOnly bool // finished phases that were quick are not told
}

// show starts the display for a command.
func (a *app) show() *display {
	d := &a.progress
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.quiet {
		return d
	}
	d.out = a.Err
	if a.fancy() {
		d.bars = mpb.New(mpb.WithOutput(a.Err), mpb.WithWidth(48), mpb.WithRefreshRate(100*time.Millisecond))
	}
	return d
}

// showSlow is show for work that is mostly too quick to speak of: elsewhere than on a terminal nothing is said of it unless it takes long.
func (a *app) showSlow() *display {
	d := a.show()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slowOnly = true
	return d
}

// Phase begins a part of the work. Being told the current phase again changes nothing.
func (d *display) Phase(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.out == nil || name == d.phase {
		return
	}
	d.finish()
	d.phase, d.begin, d.told, d.done, d.total = name, time.Now(), time.Now(), 0, 0
	if d.bars != nil && name != "" {
		d.bar = d.newBar(name)
	}
}

// Advance says how much of the phase is done.
func (d *display) Advance(done, total int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.out == nil || d.phase == "" {
		return
	}
	d.done, d.total = done, total
	switch {
	case d.bar != nil:
		if total > 0 {
			d.bar.SetTotal(total, false)
		}
		d.bar.SetCurrent(done)
	case d.bars == nil && time.Since(d.told) >= plainEvery:
		d.told = time.Now()
		fmt.Fprintf(d.out, "%s: %s\n", d.phase, d.amount())
	}
}

// amount says what was done, out of what, and how fast.
func (d *display) amount() string {
	s := formatBytes(d.done)
	if d.total > 0 {
		s += " of " + formatBytes(d.total)
	}
	if secs := time.Since(d.begin).Seconds(); secs > 0 {
		s += fmt.Sprintf(", %s/s", formatBytes(int64(float64(d.done)/secs)))
	}
	return s
}

// finish ends the current phase; d.mu is held.
func (d *display) finish() {
	if d.phase == "" {
		return
	}
	took := time.Since(d.begin).Round(10 * time.Millisecond)
	if d.bar != nil {
		d.took.Store(max(int64(took), 1)) // 0 would mean that it lasts
		d.bar.SetTotal(-1, true)          // completes whatever was known of the total
		d.bar.Wait()
		d.bar = nil
	} else if d.bars == nil && (!d.slowOnly || took >= slow) {
		fmt.Fprintf(d.out, "%s: done in %v\n", d.phase, took)
	}
	d.phase = ""
}

// stop ends the display. What was not finished is wiped from a terminal: it failed or was interrupted.
func (d *display) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.out == nil {
		return
	}
	if d.bar != nil {
		d.bar.Abort(true)
		d.bar = nil
	}
	if d.bars != nil {
		d.bars.Wait()
		d.bars = nil
	}
	d.phase, d.out = "", nil
}

// end finishes the last phase, which went well, and stops.
func (d *display) end() {
	d.mu.Lock()
	if d.out != nil {
		d.finish()
	}
	d.mu.Unlock()
	d.stop()
}

func (d *display) newBar(name string) *mpb.Bar {
	begin, took := d.begin, new(atomic.Int64)
	d.took = took
	elapsed := func(decor.Statistics) string {
		lasts := time.Duration(took.Load())
		if lasts == 0 {
			lasts = time.Since(begin)
		}
		return fmt.Sprintf("%.1f s", lasts.Seconds())
	}
	amount := func(s decor.Statistics) string {
		if s.Completed || s.Total <= 0 || s.Current <= 0 {
			return ""
		}
		rate := float64(s.Current) / time.Since(begin).Seconds()
		left := time.Duration(float64(s.Total-s.Current) / rate * float64(time.Second)).Round(time.Second)
		return fmt.Sprintf("%s of %s, %s/s, %v left", formatBytes(s.Current), formatBytes(s.Total), formatBytes(int64(rate)), left)
	}
	return d.bars.New(0, mpb.BarStyle().Lbound(" ").Rbound(" ").Filler("━").Tip("━").Padding(" "),
		mpb.BarFillerTrim(),
		mpb.BarFillerOnComplete(""),
		mpb.PrependDecorators(decor.Name(name, decor.WC{W: 10, C: decor.DindentRight}), decor.Any(elapsed, decor.WC{W: 7})),
		mpb.AppendDecorators(decor.Any(amount)),
	)
}
