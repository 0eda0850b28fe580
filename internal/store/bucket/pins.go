package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/sporevm/spore/internal/store"
)

// removalLease is how long a removal may take to look around, after which pins are
// given again.
const removalLease = 2 * time.Minute

// maxLeaseSize bounds what is read of a lease, in bytes.
const maxLeaseSize = 64

func pinsOf(id uuid.UUID) string    { return ".pins/" + id.String() + "/" }
func removalOf(id uuid.UUID) string { return ".removing/" + id.String() }
func until(d time.Duration) []byte  { return []byte(time.Now().Add(d).UTC().Format(time.RFC3339Nano)) }
func lives(lease []byte) bool {
	t, err := time.Parse(time.RFC3339Nano, string(lease))
	return err == nil && time.Now().Before(t)
}
func denied(err error) bool                 { return gcerrors.Code(err) == gcerrors.PermissionDenied }
func (b *Bucket) renewEvery() time.Duration { return b.options.Lease / 3 }

// Pin implements store.Store. Who may only read gets no lease: nothing that is
// removed while it is read goes unnoticed, as all data is verified.
func (b *Bucket) Pin(ctx context.Context, id uuid.UUID) (io.Closer, error) {
	p, err := b.pin(ctx, id)
	if err != nil {
		return nil, fail("pinning", id, "", err)
	}
	return p, nil
}

func (b *Bucket) pin(ctx context.Context, id uuid.UUID) (io.Closer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &pin{bucket: b, key: pinsOf(id) + uuid.NewString(), ended: make(chan struct{})}
	for {
		// First the lease, then a look at removals; a removal does it the other way
		// round. So at least one of two that meet sees the other.
		err := b.put(ctx, p.key, until(b.options.Lease), nil)
		if err != nil && !denied(err) {
			return nil, err
		}
		readOnly := err != nil
		removing, err := b.readSmall(ctx, removalOf(id), maxLeaseSize)
		if err == nil && lives(removing) {
			if !readOnly {
				err = b.remove(ctx, p.key)
			}
			if err == nil {
				err = sleep(ctx, 50*time.Millisecond)
			}
			if err == nil {
				continue
			}
		}
		published := false
		if err == nil {
			published, err = b.published(ctx, id)
		}
		if err == nil && !published {
			err = store.ErrNoSnapshot
		}
		if err != nil {
			return nil, errors.Join(err, p.drop())
		}
		if readOnly {
			return io.NopCloser(nil), nil
		}
		p.keep()
		return p, nil
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pin is a lease that is renewed until it is closed.
type pin struct {
	bucket *Bucket
	key    string
	stop   context.CancelFunc
	ended  chan struct{}
	once   sync.Once
	err    error
}

func (p *pin) keep() {
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go func() {
		defer close(p.ended)
		for sleep(ctx, p.bucket.renewEvery()) == nil {
			// A failure is made good by the next one, while the lease lasts.
			_ = p.bucket.put(ctx, p.key, until(p.bucket.options.Lease), nil)
		}
	}()
}

// Close ends the pin.
func (p *pin) Close() error {
	p.once.Do(func() {
		p.stop()
		<-p.ended
		p.err = p.drop()
	})
	return p.err
}

// drop removes the lease. Should that fail, it runs out.
func (p *pin) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), p.bucket.options.Timeout)
	defer cancel()
	if err := p.bucket.remove(ctx, p.key); err != nil && !denied(err) {
		return fmt.Errorf("ending a pin: %w", err)
	}
	return nil
}

// InUse implements store.Store.
func (b *Bucket) InUse(ctx context.Context, id uuid.UUID) (bool, error) {
	published, err := b.published(ctx, id)
	if err == nil && !published {
		err = store.ErrNoSnapshot
	}
	used := false
	if err == nil {
		used, err = b.pinned(ctx, id)
	}
	return used, fail("looking at", id, "", err)
}

// pinned tells whether a lease on id lives.
func (b *Bucket) pinned(ctx context.Context, id uuid.UUID) (bool, error) {
	alive := false
	err := b.each(ctx, pinsOf(id), func(o *blob.ListObject) error {
		if alive {
			return nil
		}
		lease, err := b.readSmall(ctx, o.Key, maxLeaseSize)
		alive = lives(lease)
		return err
	})
	return alive, err
}

// Remove implements store.Store.
func (b *Bucket) Remove(ctx context.Context, id uuid.UUID, unless func(context.Context) error) error {
	const op = "removing"
	if err := b.claimRemoval(ctx, id); err != nil {
		return fail(op, id, "", err)
	}
	// From here on nobody pins the snapshot, and nobody else removes it.
	folder, err, refused := b.unpublish(ctx, id, unless)
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		again := b.remove(ctx, removalOf(id))
		if refused {
			return err // as it is
		}
		return fail(op, id, "", errors.Join(err, again))
	}
	// It is removed: what is left to do is to clean up.
	return fail(op, id, "", b.clean(ctx, id, folder))
}

// claimRemoval keeps others from pinning and removing a snapshot.
func (b *Bucket) claimRemoval(ctx context.Context, id uuid.UUID) error {
	for {
		published, err := b.published(ctx, id)
		if err == nil && !published {
			err = store.ErrNoSnapshot
		}
		if err != nil {
			return err
		}
		err = b.put(ctx, removalOf(id), until(removalLease), &blob.WriterOptions{IfNotExist: true})
		if gcerrors.Code(err) != gcerrors.FailedPrecondition {
			return err
		}
		other, err := b.readSmall(ctx, removalOf(id), maxLeaseSize)
		if err == nil && other != nil && !lives(other) {
			err = b.remove(ctx, removalOf(id)) // of a process that died
		}
		if err == nil {
			err = sleep(ctx, 50*time.Millisecond)
		}
		if err != nil {
			return err
		}
	}
}

// unpublish deletes the manifest unless somebody objects; refused says that it was
// the caller's own function. folder is where the other objects lie.
func (b *Bucket) unpublish(ctx context.Context, id uuid.UUID, unless func(context.Context) error) (folder string, err error, refused bool) {
	if folder, err = b.folder(ctx, id); err != nil {
		return "", err, false
	}
	used, err := b.pinned(ctx, id)
	if err != nil {
		return "", err, false
	}
	if used {
		return "", store.ErrInUse, false
	}
	if unless != nil {
		limited, cancel := context.WithTimeout(ctx, removalLease/2)
		defer cancel()
		if err := unless(limited); err != nil {
			return "", err, true
		}
	}
	return folder, b.remove(ctx, manifestKey(id)), false
}

// clean deletes what is left of a snapshot that was unpublished, and then lets
// others go on. By then another may be published under the same id: it has a
// folder of its own.
func (b *Bucket) clean(ctx context.Context, id uuid.UUID, folder string) error {
	b.folders.Delete(id)
	names, err := b.readNames(ctx)
	errs := []error{err}
	for name, of := range names {
		if of == id {
			errs = append(errs, b.remove(ctx, nameKey(name)))
		}
	}
	errs = append(errs, b.each(ctx, id.String()+"/"+folder+"/", func(o *blob.ListObject) error { return b.remove(ctx, o.Key) }))
	errs = append(errs, b.each(ctx, pinsOf(id), func(o *blob.ListObject) error {
		lease, err := b.readSmall(ctx, o.Key, maxLeaseSize)
		if err != nil || lives(lease) { // of one who waits
			return err
		}
		return b.remove(ctx, o.Key)
	}))
	return errors.Join(append(errs, b.remove(ctx, removalOf(id)))...)
}
