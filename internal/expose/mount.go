package expose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// MountOptions are how a disk is mounted.
type MountOptions struct {
	Writable bool // the Base is a Disk
	Format   int  // make a new file system of blocks of so many bytes first; 0: there is one
	Verify   bool // have e2fsck look at it first
	Trace    *log.Logger
}

// Mount is an ext4 file system on a disk that is mounted on this host, by FUSE and a loop device. Serve it in a process that does nothing else, see
// FUSEServer.
type Mount struct {
	dir    string
	device string
	fuse   *FUSEServer
}

// MountDisk mounts the file system on a disk, which must stay open until Close. It takes root.
//
// All that reads or writes the file system is done by programs of their own: a process that died in the middle of such a system call could not end before
// the call did, which waits for the process's own answer, and the kernel would wait with it for ever.
func MountDisk(ctx context.Context, base Base, dir string, o MountOptions) (*Mount, error) {
	server, err := ServeFUSE([]FUSEFile{{Name: "disk", Base: base, Writable: o.Writable}}, o.Trace)
	if err != nil {
		return nil, err
	}
	m := &Mount{dir: dir, fuse: server}
	if err := m.mount(ctx, o); err != nil {
		server.Close()
		return nil, err
	}
	return m, nil
}

func (m *Mount) mount(ctx context.Context, o MountOptions) error {
	fd, _ := m.fuse.FD("disk")
	device, err := AttachLoop(fd, o.Writable)
	if err != nil {
		return err
	}
	defer device.Close() // from the mount on that keeps it; or else it is gone
	m.device = device.Name()
	if o.Format > 0 {
		if err := tool(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(o.Format), m.device); err != nil {
			return fmt.Errorf("making a file system: %w", err)
		}
	}
	if o.Verify {
		if err := tool(ctx, "e2fsck", "-fn", m.device); err != nil {
			return fmt.Errorf("checking the file system: %w", err)
		}
	}
	flags := "nodev,nosuid"
	if !o.Writable {
		flags += ",ro"
	}
	// Not to be interrupted: then nobody would know whether it is mounted.
	if err := tool(context.WithoutCancel(ctx), "mount", "-t", "ext4", "-o", flags, "--", m.device, m.dir); err != nil {
		return fmt.Errorf("mounting on %s: %w", m.dir, err)
	}
	return nil
}

// tool runs a program; its error holds what the program said, in English.
func tool(ctx context.Context, name string, args ...string) error {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} { // not in the PATH of users
		if err != nil {
			path, err = exec.LookPath(dir + name)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: install e2fsprogs and mount", err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// Device is the loop device that is mounted.
func (m *Mount) Device() string { return m.device }

// ErrBusy says that a file system is still in use by others.
var ErrBusy = errors.New("it is still in use")

// Close unmounts. While others use the file system it waits for them, at most patience; then it takes the mount out of their sight and returns an error
// that wraps ErrBusy. The disk is served on until Close returns, and no longer.
func (m *Mount) Close(patience time.Duration) error {
	defer m.fuse.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := tool(context.Background(), "umount", "--", m.dir)
		switch {
		case err == nil || strings.Contains(err.Error(), "not mounted"): // then somebody has unmounted it
			return m.wait()
		case !strings.Contains(err.Error(), "busy"):
			return fmt.Errorf("unmounting %s: %w", m.dir, err)
		case time.Now().After(deadline):
			return errors.Join(fmt.Errorf("unmounting %s: %w", m.dir, ErrBusy), tool(context.Background(), "umount", "--lazy", "--", m.dir))
		}
	}
}

// settling is how long the kernel may take to let go of a device.
const settling = 10 * time.Second

// wait returns when nothing uses the disk any more.
func (m *Mount) wait() error {
	m.fuse.Close()
	select {
	case <-m.fuse.Done():
		return nil
	case <-time.After(settling):
		return fmt.Errorf("unmounted %s, but the device %s: %w", m.dir, m.device, ErrBusy)
	}
}

// Zeros is a Base of so many bytes that are all zero.
type Zeros int64

// Size implements Base.
func (z Zeros) Size() int64 { return int64(z) }

// ReadAt implements Base.
func (z Zeros) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(int64(z)-off, 0)))
	clear(p[:n])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Extent implements Mapper.
func (z Zeros) Extent(offset, limit int64) (int64, bool) { return min(limit, int64(z)-offset), true }
