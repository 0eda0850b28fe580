package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// copyWorkers is how many snapshots are copied at once.
const copyWorkers = 4

// CopyReport says what a copy did.
type CopyReport struct {
	Copied  []uuid.UUID // ancestors before their children
	Present []uuid.UUID // were there already, the same to the last byte
	Bytes   int64       // of artifacts that were copied
	Kept    int64       // bytes of artifacts that an interrupted copy had left
}

// ConflictError says that the destination has another snapshot of the same id.
type ConflictError struct {
	ID         uuid.UUID
	Here, From block.Digest // at the destination, at the source
}

// Error names the snapshot and both digests.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("the destination has another snapshot of the id %s: its digest is %s, not %s", e.ID, e.Here, e.From)
}

// Is makes the error one of store.ErrExist.
func (e *ConflictError) Is(target error) bool { return target == store.ErrExist }

// CopyFrom copies the snapshot id, and all its ancestors that r lacks, from
// another repository. Each appears whole or not at all and after those that it
// needs, so a copy that was interrupted is taken up where it stopped; in a store in
// a folder also in the middle of a snapshot. Frames are verified when they are read,
// and again as they were written, or found. Signatures and prefetch lists come
// along, names don't.
//
// progress, which may be nil, hears how much of how many bytes is done; calls of
// it do not overlap. Errors are *NotFoundError, *CorruptError and
// *block.CorruptError of the source, *ConflictError, or the stores'.
func (r *Repo) CopyFrom(ctx context.Context, from *Repo, id uuid.UUID, progress func(done, total int64)) (CopyReport, error) {
	c := copier{from: from, to: r, tell: progress, done: map[uuid.UUID]chan struct{}{}}
	defer c.close()
	if err := c.plan(ctx, id); err != nil {
		return c.report, err
	}
	err := c.run(ctx)
	return c.report, err
}

// copier is one copy under way.
type copier struct {
	from, to *Repo
	missing  []*Snapshot // ancestors first; open, so that they stay
	done     map[uuid.UUID]chan struct{}
	total    int64

	tell func(done, total int64)

	mu     sync.Mutex
	report CopyReport
}

func (c *copier) close() {
	for _, s := range c.missing {
		s.Close()
	}
}

// plan finds what the destination lacks. What it has is whole, ancestors and all.
func (c *copier) plan(ctx context.Context, id uuid.UUID) error {
	seen := map[uuid.UUID]bool{}
	open := c.from.OpenID
	for queue := []uuid.UUID{id}; len(queue) > 0; queue = queue[1:] {
		id := queue[0]
		if seen[id] {
			continue
		}
		seen[id] = true
		s, err := open(ctx, id)
		if err != nil {
			return err
		}
		open = c.from.open // who trusts a snapshot trusts all data that it names
		present, err := c.present(ctx, s)
		if err != nil || present {
			s.Close()
			if err != nil {
				return err
			}
			c.report.Present = append(c.report.Present, id)
			if err := c.beside(ctx, id); err != nil { // which may have come since
				return err
			}
			continue
		}
		c.missing = append(c.missing, s)
		c.done[id] = make(chan struct{})
		c.total += s.meta.StoredBytes()
		queue = append(queue, s.meta.Layers...)
	}
	slices.SortStableFunc(c.missing, func(a, b *Snapshot) int { return int(a.meta.Generation) - int(b.meta.Generation) })
	return nil
}

// present tells whether the destination has the same snapshot.
func (c *copier) present(ctx context.Context, s *Snapshot) (bool, error) {
	_, digest, err := readMetadata(ctx, c.to.store, s.meta.ID)
	switch {
	case errors.Is(err, store.ErrNoSnapshot):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking at the destination: %w", err)
	case digest != s.digest:
		return false, &ConflictError{ID: s.meta.ID, Here: digest, From: s.digest}
	}
	return true, nil
}

func (c *copier) run(ctx context.Context) error {
	c.add(0)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(copyWorkers)
	for _, s := range c.missing { // in an order in which nobody waits for a later one
		group.Go(func() error {
			if err := c.copy(ctx, s); err != nil {
				return fmt.Errorf("copying snapshot %s: %w", s.meta.ID, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// add counts bytes that were copied, keep those that were there.
func (c *copier) add(n int64)  { c.count(&c.report.Bytes, n) }
func (c *copier) keep(n int64) { c.count(&c.report.Kept, n) }

func (c *copier) count(what *int64, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*what += n
	if c.tell != nil {
		c.tell(c.report.Bytes+c.report.Kept, c.total)
	}
}

// copy copies one snapshot, and publishes it once those that it needs are there.
func (c *copier) copy(ctx context.Context, s *Snapshot) error {
	draft, end, err := c.begin(ctx, s)
	if errors.Is(err, store.ErrExist) {
		return c.raced(ctx, s)
	} else if err != nil {
		return err
	}
	defer end()
	group, inner := errgroup.WithContext(ctx)
	for name := range s.meta.Artifacts {
		group.Go(func() error { return c.artifact(inner, draft, s, name) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := c.metadata(ctx, draft, s); err != nil {
		return err
	}
	for _, layer := range s.meta.Layers {
		if done, copying := c.done[layer]; copying {
			select {
			case <-done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	if err := draft.Commit(ctx); errors.Is(err, store.ErrExist) {
		return c.raced(ctx, s)
	} else if err != nil {
		return err
	}
	return c.finish(ctx, s, true)
}

// raced looks at what another process has published meanwhile.
func (c *copier) raced(ctx context.Context, s *Snapshot) error {
	if _, err := c.present(ctx, s); err != nil {
		return err
	}
	return c.finish(ctx, s, false)
}

// finish takes along what is beside the snapshot and lets the children follow.
func (c *copier) finish(ctx context.Context, s *Snapshot, copied bool) error {
	if err := c.beside(ctx, s.meta.ID); err != nil {
		return err
	}
	c.mu.Lock()
	if copied {
		c.report.Copied = append(c.report.Copied, s.meta.ID)
	} else {
		c.report.Present = append(c.report.Present, s.meta.ID)
	}
	c.mu.Unlock()
	close(c.done[s.meta.ID])
	return nil
}

// beside takes along what lies beside a snapshot that the destination has.
func (c *copier) beside(ctx context.Context, id uuid.UUID) error {
	data, err := readAll(ctx, c.from.store, id, SignatureFile, store.MaxAttachment)
	if err == nil {
		err = c.to.AttachSignatures(ctx, id, data)
	}
	if err != nil && !errors.Is(err, store.ErrNoArtifact) {
		return fmt.Errorf("copying the signatures of snapshot %s: %w", id, err)
	}
	data, err = readAll(ctx, c.from.store, id, PrefetchFile, store.MaxAttachment)
	if err == nil {
		err = c.to.AttachPrefetch(ctx, id, data)
	}
	if err != nil && !errors.Is(err, store.ErrNoArtifact) && !is[*CorruptError](err) { // advice that can't be read is worth nothing
		return fmt.Errorf("copying the prefetch list of snapshot %s: %w", id, err)
	}
	return nil
}

func is[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

// artifact copies one file.
func (c *copier) artifact(ctx context.Context, draft store.Draft, s *Snapshot, name string) error {
	image := s.disk
	switch name {
	case MemoryFile:
		image = s.memory
	case DiskFile:
	default:
		data, err := s.read(ctx, name)
		if err != nil {
			return err
		}
		return c.put(draft, name, data)
	}
	return c.data(ctx, draft, s, name, image)
}

// data copies the layer that s stored itself.
func (c *copier) data(ctx context.Context, draft store.Draft, s *Snapshot, name string, image *block.Reader) error {
	f, err := c.create(ctx, draft, s, name, image)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := image.CopyLayer(ctx, s.meta.ID, f.Size(), &checkedWriter{file: f}, c.add); err != nil {
		return err
	}
	if f.Size() != s.meta.Artifacts[name].Size {
		return &CorruptError{ID: s.meta.ID, Artifact: name, Err: fmt.Errorf("its header describes %d bytes, %s says %d", f.Size(), MetadataFile, s.meta.Artifacts[name].Size)}
	}
	return nil
}

// checkedWriter reads what it has written, and wants it to be the same.
type checkedWriter struct {
	file store.File
	buf  []byte
}

// Write implements io.Writer.
func (w *checkedWriter) Write(p []byte) (int, error) {
	at := w.file.Size()
	n, err := w.file.Write(p)
	if err != nil {
		return n, err
	}
	w.buf = slices.Grow(w.buf[:0], len(p))[:len(p)]
	if k, err := w.file.ReadAt(w.buf, at); k < len(p) {
		return n, fmt.Errorf("reading what was written: %w", cmp.Or(err, io.ErrUnexpectedEOF))
	}
	if !bytes.Equal(w.buf, p) {
		return n, fmt.Errorf("the copy is not what was written, between bytes %d and %d", at, at+int64(len(p)))
	}
	return n, nil
}

func (c *copier) put(draft store.Draft, name string, data []byte) error {
	f, err := draft.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	c.add(int64(len(data)))
	return errors.Join(err, f.Close())
}

// metadata copies metadata.json to the byte: its digest is the snapshot's.
func (c *copier) metadata(ctx context.Context, draft store.Draft, s *Snapshot) error {
	data, err := readAll(ctx, c.from.store, s.meta.ID, MetadataFile, MaxMetadataSize)
	if err != nil {
		return err
	}
	if block.Sum(data) != s.digest {
		return &CorruptError{ID: s.meta.ID, Artifact: MetadataFile, Err: errors.New("it was replaced while the snapshot was open")}
	}
	f, err := draft.Create(MetadataFile)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
