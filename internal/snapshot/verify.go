package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// Verify reads everything that the snapshot needs, its ancestors' layers too, and
// checks every digest and rule from metadata.json down to the last frame. It
// returns all that is wrong, joined; for each data file it gives up after some
// corrupt frames. progress, which may be nil, hears how much of how many bytes of
// disk and memory is done; calls of it do not overlap.
func (r *Repo) Verify(ctx context.Context, s *Snapshot, progress func(done, total int64)) error {
	// What is open was checked when it was opened. The files may have changed since.
	source := *r
	if r.far != nil {
		source.far = forgetful{} // what is cached here says nothing of the store
	}
	fresh, err := source.OpenID(ctx, s.ID())
	if err != nil {
		return err
	}
	defer fresh.Close()
	if fresh.digest != s.digest {
		return &CorruptError{ID: s.ID(), Artifact: MetadataFile, Err: errors.New("it was replaced while the snapshot was open")}
	}
	errs := []error{fresh.verifySize(ctx, DiskFile), fresh.verifyLayers(ctx, fresh.disk, DiskFile)}
	if fresh.memory != nil {
		_, err := fresh.State(ctx)
		errs = append(errs, err, fresh.verifySize(ctx, MemoryFile), fresh.verifyLayers(ctx, fresh.memory, MemoryFile))
	}
	// Frames of a file that is missing or short would be named one by one.
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return fresh.verifyFrames(ctx, progress)
}

// verifySize holds the snapshot's own data file against the metadata.
func (s *Snapshot) verifySize(ctx context.Context, name string) error {
	return verifyStored(ctx, s, s.meta.ID, name, s.meta.Artifacts[name].Size)
}

// verifyLayers holds the data files of the ancestors against a header.
func (s *Snapshot) verifyLayers(ctx context.Context, image *block.Reader, name string) error {
	var errs []error
	for _, l := range image.Header().Layers {
		errs = append(errs, verifyStored(ctx, s, l.ID, name, l.StoredSize()))
	}
	return errors.Join(errs...)
}

func verifyStored(ctx context.Context, s *Snapshot, id uuid.UUID, name string, want int64) error {
	o, err := openArtifact(ctx, s.store, id, name)
	if err != nil {
		return err
	}
	defer o.Close()
	if o.Size() != want {
		return &CorruptError{ID: id, Artifact: name, Err: fmt.Errorf("it has %d bytes, not %d", o.Size(), want)}
	}
	return nil
}

func (s *Snapshot) verifyFrames(ctx context.Context, progress func(done, total int64)) error {
	images := []*block.Reader{s.disk}
	if s.memory != nil {
		images = append(images, s.memory)
	}
	var mu sync.Mutex
	var done, total int64
	for _, image := range images {
		total += image.Header().Usage().Data()
	}
	report := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		done += n
		if progress != nil {
			progress(done, total)
		}
	}
	report(0)
	var errs []error
	for _, image := range images { // each is parallel in itself
		errs = append(errs, image.Verify(ctx, report))
	}
	return errors.Join(errs...)
}

// forgetful is a cache that keeps nothing.
type forgetful struct{}

// Get implements block.FrameCache.
func (forgetful) Get(block.Digest, []byte) bool { return false }

// Put implements block.FrameCache.
func (forgetful) Put(block.Digest, []byte) {}
