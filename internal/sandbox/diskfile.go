package sandbox

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/expose"
)

// diskName is the name of a disk in a FUSE file system of its own.
const diskName = "disk"

// serveFile serves the disk as a file and returns a descriptor of it for the VMM.
func (d *disk) serveFile(faulted func(error)) (*os.File, error) {
	d.watched = &watched{Disk: d.sw, faulted: faulted}
	var err error
	d.fuse, err = expose.ServeFUSE([]expose.FUSEFile{{Name: diskName, Base: d.watched, Writable: true}}, nil)
	if err != nil {
		return nil, fmt.Errorf("showing the disk to the VMM: %w; with --engine qemu neither FUSE nor root is needed", err)
	}
	fd, _ := d.fuse.FD(diskName)
	file, err := duplicate(fd)
	if err == nil {
		d.tree, err = duplicate(d.fuse.Tree())
	}
	if err != nil {
		return nil, fmt.Errorf("showing the disk to the VMM: %w", err)
	}
	return file, nil
}

func duplicate(fd int) (*os.File, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), diskName), nil
}

// watched tells of the first operation that fails: a guest sees no more of it than an errno.
type watched struct {
	expose.Disk
	faulted func(error)

	mu    sync.Mutex
	first error
}

// ReadAt implements [expose.Disk].
func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.Disk.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	return n, w.tell("read", off, int64(len(p)), err)
}

// WriteAt implements [expose.Disk].
func (w *watched) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.Disk.WriteAt(p, off)
	return n, w.tell("write", off, int64(len(p)), err)
}

// Zero implements [expose.Disk].
func (w *watched) Zero(off, length int64, allowHole bool) error {
	return w.tell("zero", off, length, w.Disk.Zero(off, length, allowHole))
}

// Flush implements [expose.Disk].
func (w *watched) Flush(ctx context.Context) error { return w.tell("flush", 0, 0, w.Disk.Flush(ctx)) }

// tell passes an error on, and reports it unless it is one that the guest has made.
func (w *watched) tell(op string, off, length int64, err error) error {
	if err == nil || off+length > w.Size() {
		return err
	}
	fault := &expose.Fault{Op: op, Offset: off, Length: length, Err: err}
	w.mu.Lock()
	first := w.first == nil
	if first {
		w.first = fault
	}
	w.mu.Unlock()
	if first {
		// Not here: the owner may end the VMM, which may be waiting for this very answer.
		go w.faulted(fault)
	}
	return err
}

func (w *watched) fault() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}

// closeFile ends the serving of a file. The VMM has ended by then, and with it all that it had open.
func (d *disk) closeFile() {
	if d.fuse != nil {
		d.fuse.Close()
		if d.tree != nil {
			d.tree.Close()
		}
		<-d.fuse.Done()
	}
}
