package fleet

import (
	"context"
	"log/slog"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
)

// recover finds out what became of the sandboxes while there was no daemon.
func (f *Fleet) recover(ctx context.Context) error {
	records, err := f.db.all(ctx)
	if err != nil {
		return err
	}
	for _, r := range records {
		e := newEntry(r)
		f.entries[e.id] = e
		if r.Info.State == Running {
			if err := f.recoverRunning(ctx, e); err != nil {
				return err
			}
		}
		if i := e.get(); i.State == Paused {
			f.count(i, +1)
			f.giveTokens(e)
		}
	}
	return nil
}

// recoverRunning decides about a sandbox that ran when the last daemon died: its machine has died with it, unless it had just been saved.
func (f *Fleet) recoverRunning(ctx context.Context, e *entry) error {
	if e.pausing != uuid.Nil {
		snap, err := f.host.Snapshots.OpenID(ctx, e.pausing)
		if err == nil {
			if err := snap.Close(); err != nil {
				return err
			}
			if err := f.host.Snapshots.Tag(ctx, sleepName(e.id), e.pausing); err != nil {
				return err
			}
			e.info.State, e.info.Snapshot = Paused, e.pausing
			e.own, e.pausing = append(e.own, e.pausing), uuid.Nil
			f.note(e.id, slog.LevelInfo, "paused: the daemon died right after", nil)
			return f.db.put(ctx, e.record())
		}
		if !is[*snapshot.NotFoundError](err) {
			return err
		}
	}
	own := e.own
	e.info.State, e.info.Reason, e.own, e.pausing = Dead, "the daemon died, and its machine with it", nil, uuid.Nil
	f.discard(ctx, own)
	f.note(e.id, slog.LevelWarn, e.info.Reason, nil)
	return f.db.put(ctx, e.record())
}
