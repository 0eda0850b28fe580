package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/expose"
)

// disk is a machine's root disk: a copy-on-write overlay over a snapshot's, served to the VMM over one NBD connection.
type disk struct {
	base   *block.Reader
	sw     *expose.Switch
	top    *expose.Overlay   // takes the writes
	frozen []*expose.Overlay // stand below top until their blocks are published, oldest first

	server *expose.NBDServer // nil for a disk that is served as a file
	cancel context.CancelFunc
	served sync.WaitGroup

	fuse    *expose.FUSEServer // nil for a disk that is served as NBD
	tree    *os.File           // the mount that the file is in
	watched *watched
}

// newDisk starts serving an overlay over base, which is read by way of below, and returns the VMM's end of the connection or, with asFile, a file.
func newDisk(base *block.Reader, below expose.Base, scratch string, asFile bool, faulted func(error)) (_ *disk, vmmEnd *os.File, err error) {
	d := &disk{base: base}
	if d.top, err = expose.NewOverlay(below, scratch); err != nil {
		return nil, nil, err
	}
	d.sw = expose.NewSwitch(d.top)
	if asFile {
		if vmmEnd, err = d.serveFile(faulted); err != nil {
			return nil, nil, errors.Join(err, d.close())
		}
		return d, vmmEnd, nil
	}
	conn, vmmEnd, err := expose.Pair()
	if err != nil {
		return nil, nil, errors.Join(err, d.top.Close())
	}
	d.server = expose.NewNBDServer(d.sw, expose.NBDOptions{Faulted: func(f *expose.Fault) { faulted(f) }})
	ctx, cancel := context.WithCancel(context.Background()) // ended by close, not by the request that made the machine
	d.cancel = cancel
	d.served.Go(func() {
		_ = d.server.ServeConn(ctx, conn) // how the VMM leaves is told by the VMM's own end
	})
	return d, vmmEnd, nil
}

// firstFault returns the first failure to read or write the disk.
func (d *disk) firstFault() error {
	if d.server == nil {
		return d.watched.fault()
	}
	if f := d.server.Fault(); f != nil {
		return f
	}
	return nil
}

// freeze sets the disk's present content aside for save; a machine that goes on writes to a fresh overlay.
func (d *disk) freeze() error {
	return d.sw.Replace(func(expose.Disk) (expose.Disk, error) {
		next, err := d.top.Freeze()
		if err != nil {
			return nil, fmt.Errorf("freezing the disk: %w", err)
		}
		d.frozen, d.top = append(d.frozen, d.top), next
		return next, nil
	})
}

// save writes what was frozen as the blocks by which a child's disk differs from its parent's.
func (d *disk) save(ctx context.Context, w *block.Writer, progress func(done, total int64)) error {
	dirty := new(block.Set)
	for _, o := range d.frozen {
		dirty.Union(o.Dirty())
	}
	return saveBlocks(ctx, w, dirty, d.frozen[len(d.frozen)-1], d.base, progress)
}

// rebase lets go of the frozen overlays once a published snapshot holds their blocks.
func (d *disk) rebase(published *block.Reader) error {
	if err := d.top.Rebase(published); err != nil {
		return err
	}
	var errs []error
	for _, o := range d.frozen {
		errs = append(errs, o.Close())
	}
	d.frozen, d.base = nil, published
	return errors.Join(errs...)
}

func (d *disk) close() error {
	if d.cancel != nil {
		d.cancel()
	}
	d.served.Wait()
	d.closeFile()
	errs := []error{d.top.Close()}
	for _, o := range d.frozen {
		errs = append(errs, o.Close())
	}
	return errors.Join(errs...)
}

// saveChunk is how many bytes are compared and copied at once.
const saveChunk = 1 << 20

// saveBlocks writes the blocks in dirty, read from now, to w unless they are what they were in before. A nil before is all zeros.
func saveBlocks(ctx context.Context, w *block.Writer, dirty *block.Set, now, before io.ReaderAt, progress func(done, total int64)) error {
	const size = block.DefaultBlockSize
	current, old := make([]byte, saveChunk), make([]byte, saveChunk)
	total, done := dirty.Len()*size, int64(0)
	for first, n := range dirty.Ranges() {
		for off, end := first*size, (first+n)*size; off < end; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			length := min(end-off, saveChunk)
			cur := current[:length]
			_, err := now.ReadAt(cur, off)
			if err != nil && err != io.EOF {
				return err
			}
			if before == nil {
				err = w.Write(off, cur)
			} else if _, err = before.ReadAt(old[:length], off); err == nil || err == io.EOF {
				err = w.WriteChanged(off, cur, old[:length])
			}
			if err != nil {
				return err
			}
			off += length
			done += length
			progress(done, total)
		}
	}
	return nil
}
