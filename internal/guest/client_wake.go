package guest

import (
	"context"
	"time"

	"github.com/sporevm/spore/internal/guest/api"
)

// Wake hands a woken or freshly booted guest its identity. When it returns
// without error the identity is in force and user processes run. The guest's
// clock is set to the present, whatever id's time says, unless that is zero.
//
// It takes two requests: the first waits for a guest that boots, or runs code
// that is new to an emulator, and nobody knows for how long. User processes
// run when the second has set the clock. Where the host is so busy that this
// one was long under way as well, others follow that only set the clock.
func (c *Client) Wake(ctx context.Context, id api.Identity) (api.WakeReport, error) {
	setClock := id.Time != 0
	id.Hold = true
	if setClock {
		id.Time = time.Now().UnixNano()
	}
	first, err := c.wake(ctx, id)
	if err != nil {
		return first, err
	}
	release, sent := api.Identity{Generation: id.Generation, Epoch: id.Epoch}, time.Now()
	if setClock {
		release.Time = sent.UnixNano()
	}
	second, err := c.wake(ctx, release)
	if err != nil {
		return first, err
	}
	second.Entropy = first.Entropy
	second.ClockStep += first.ClockStep
	second.Duration += first.Duration
	if setClock {
		err = c.setClock(ctx, id, sent, &second)
	}
	return second, err
}

const (
	// clockSlack is how long the answer to a wake may take before the guest's
	// clock, which was set on its way, is set again: it may be off by that.
	clockSlack = 40 * time.Millisecond
	// clockTries bounds that on a host that stays busy.
	clockTries = 5
)

// setClock sets the clock of a woken guest until its answer comes soon: nobody
// knows when on a request's way that happened. The last was sent at the time
// sent; what it has reported is brought up to date.
func (c *Client) setClock(ctx context.Context, id api.Identity, sent time.Time, report *api.WakeReport) error {
	for range clockTries {
		took := time.Since(sent)
		c.slack.Store(int64(took))
		if took <= clockSlack {
			return nil
		}
		sent = time.Now()
		// Fresh entropy is asked of every wake that is not the second of two. The same again does no harm.
		again, err := c.wake(ctx, api.Identity{Generation: id.Generation, Epoch: id.Epoch, Time: sent.UnixNano(), Entropy: id.Entropy})
		if err != nil {
			return err
		}
		report.Time = again.Time
		report.ClockStep += again.ClockStep
		report.Duration += again.Duration
	}
	c.slack.Store(int64(time.Since(sent)))
	return nil
}

// ClockSlack is how far off the guest's clock may be that the last wake has
// set: as long as the request was under way. Only a host that is too busy to do
// better has more than some milliseconds.
func (c *Client) ClockSlack() time.Duration { return time.Duration(c.slack.Load()) }

// WakeWarm is Wake for a guest that has been woken in this session before: what
// it runs is translated, so it answers at once, and one request is enough.
func (c *Client) WakeWarm(ctx context.Context, id api.Identity) (api.WakeReport, error) {
	sent := time.Now()
	id.Hold, id.Time = false, sent.UnixNano()
	report, err := c.wake(ctx, id)
	if err == nil {
		err = c.setClock(ctx, id, sent, &report)
	}
	return report, err
}

// WakeStill hands a still guest an identity and leaves it still and its clock as
// it is: the guest then waits for the next wake.
func (c *Client) WakeStill(ctx context.Context, id api.Identity) (api.WakeReport, error) {
	id.Hold, id.Time = true, 0
	return c.wake(ctx, id)
}
