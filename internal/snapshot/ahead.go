package snapshot

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// aheadReads is how many reads of a disk that is fetched ahead are under way at once:
// from afar they wait more than they work.
const aheadReads = 16

// FetchDisk brings what a machine reads of a disk when it wakes to this host's cache
// of frames, as far as a list beside the snapshot tells. It returns how many bytes
// are listed, when all of them are there, can't be had, or ctx has ended. What fails
// is left to those who read it: an error is no reason to fail. It does not need s to
// stay open.
func (r *Repo) FetchDisk(ctx context.Context, s *Snapshot) (int64, error) {
	if r.far == nil {
		return 0, nil
	}
	list, err := r.Prefetch(ctx, s.meta.ID)
	if err != nil {
		return 0, err
	}
	list = list.Disk()
	// A reader of its own: it is closed only after the last read, whatever becomes of s.
	image := s.reader(DiskFile, s.disk.Header())
	defer image.Close()
	fetcher := image.Fetcher()
	var group errgroup.Group
	group.SetLimit(aheadReads)
	for _, frames := range fetcher.Plan(list.Bytes()) {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return fetcher.Fetch(ctx, frames, func(int64, []byte) {}) })
	}
	if err := group.Wait(); err != nil {
		return list.Size(), err
	}
	return list.Size(), context.Cause(ctx)
}
