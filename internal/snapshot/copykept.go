package snapshot

import (
	"context"
	"encoding/hex"
	"errors"
	"io"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// keeper is a store that keeps what was copied of a snapshot when its copy is
// interrupted.
type keeper interface {
	BeginKept(ctx context.Context, id uuid.UUID, content string) (store.KeptDraft, error)
}

// begin starts the draft of a copy. It must be ended by end, which does nothing
// after a commit.
func (c *copier) begin(ctx context.Context, s *Snapshot) (draft store.Draft, end func() error, err error) {
	if k, ok := c.to.store.(keeper); ok {
		kept, err := k.BeginKept(ctx, s.meta.ID, hex.EncodeToString(s.digest[:]))
		if err != nil {
			return nil, nil, err
		}
		return kept, kept.Keep, nil
	}
	if draft, err = c.to.store.Begin(ctx, s.meta.ID); err != nil {
		return nil, nil, err
	}
	return draft, draft.Abort, nil
}

// create starts a data file, with the frames of it that an interrupted copy left.
// Those are read and verified like any others; what comes after the last good one
// is thrown away.
func (c *copier) create(ctx context.Context, draft store.Draft, s *Snapshot, name string, image *block.Reader) (store.File, error) {
	d, ok := draft.(store.KeptDraft)
	if !ok {
		return draft.Create(name)
	}
	f, err := d.Continue(name)
	if err != nil || f.Size() == 0 {
		return f, err
	}
	var right byteCount
	// Its error tells why no more is right, which does not matter.
	_ = image.Header().CopyStream(ctx, s.meta.ID, &right, io.NewSectionReader(f, 0, f.Size()), nil)
	if err = context.Cause(ctx); err == nil {
		err = f.Truncate(int64(right))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c.keep(int64(right))
	return f, nil
}

// byteCount counts what is written to it.
type byteCount int64

// Write implements io.Writer.
func (n *byteCount) Write(p []byte) (int, error) {
	*n += byteCount(len(p))
	return len(p), nil
}
