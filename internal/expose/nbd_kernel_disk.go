package expose

import (
	"context"
	"io/fs"
	"log"
)

// readOnlyDisk is a Base as a Disk.
type readOnlyDisk struct{ Base }

// WriteAt implements Disk.
func (readOnlyDisk) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrPermission }

// Zero implements Disk.
func (readOnlyDisk) Zero(int64, int64, bool) error { return fs.ErrPermission }

// Trim implements Disk.
func (readOnlyDisk) Trim(int64, int64) error { return fs.ErrPermission }

// Flush implements Disk.
func (readOnlyDisk) Flush(context.Context) error { return nil }

// Extent implements Disk.
func (d readOnlyDisk) Extent(offset, limit int64) (int64, bool) {
	if m := mapperOf(d.Base); m != nil {
		return m.Extent(offset, limit)
	}
	return limit, false
}

// tracedDisk tells every request.
type tracedDisk struct {
	Disk
	log *log.Logger
}

func (d tracedDisk) tell(op string, offset, length int64, err error) {
	if err != nil {
		d.log.Printf("%s %d bytes at %d: %v", op, length, offset, err)
		return
	}
	d.log.Printf("%s %d bytes at %d", op, length, offset)
}

// ReadAt implements Disk.
func (d tracedDisk) ReadAt(p []byte, offset int64) (int, error) {
	n, err := d.Disk.ReadAt(p, offset)
	d.tell("READ", offset, int64(len(p)), err)
	return n, err
}

// WriteAt implements Disk.
func (d tracedDisk) WriteAt(p []byte, offset int64) (int, error) {
	n, err := d.Disk.WriteAt(p, offset)
	d.tell("WRITE", offset, int64(len(p)), err)
	return n, err
}

// Flush implements Disk.
func (d tracedDisk) Flush(ctx context.Context) error {
	err := d.Disk.Flush(ctx)
	d.tell("FLUSH", 0, 0, err)
	return err
}

// Zero implements Disk.
func (d tracedDisk) Zero(offset, length int64, allowHole bool) error {
	err := d.Disk.Zero(offset, length, allowHole)
	d.tell("ZERO", offset, length, err)
	return err
}

// Trim implements Disk.
func (d tracedDisk) Trim(offset, length int64) error {
	err := d.Disk.Trim(offset, length)
	d.tell("TRIM", offset, length, err)
	return err
}
