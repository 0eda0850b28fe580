package expose

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Via is how a disk becomes a device of this host.
type Via string

// The ways. NBD is there if the kernel's own client for it is; ViaAuto takes NBD where it is, or else FUSE.
const (
	ViaAuto Via = "auto"
	ViaNBD  Via = "nbd"
	ViaFUSE Via = "fuse" // and a loop device
)

// MountOptions are how a disk is mounted.
type MountOptions struct {
	Writable bool   // the Base is a Disk
	Format   int    // make a new file system of blocks of so many bytes first; 0: there is one
	Verify   bool   // have e2fsck look at it first
	Via      Via    // "" is ViaAuto
	Mark     string // what nobody else calls a disk: ReleaseNBD finds the device by it, should this process be killed. For all ways but FUSE.
	Trace    *log.Logger
}

// Mount is an ext4 file system on a disk that is mounted on this host. Serve it in a process that does nothing else, see FUSEServer.
type Mount struct {
	dir    string
	device device
}

// device is a disk that is a device of this host.
type device interface {
	via() Via
	name() string
	keep() error           // has it stay for as long as it is mounted, and no longer
	done() <-chan struct{} // closed when nothing uses the disk any more
	close() error          // lets go of it, whoever uses it
}

// MountDisk mounts the file system on a disk, which must stay open until Close. It takes root.
//
// All that reads or writes the file system is done by programs of their own: a process that died in the middle of such a system call could not end before
// the call did, which waits for the process's own answer, and the kernel would wait with it for ever.
func MountDisk(ctx context.Context, base Base, dir string, o MountOptions) (*Mount, error) {
	device, err := attachDisk(base, o)
	if err != nil {
		return nil, err
	}
	m := &Mount{dir: dir, device: device}
	if err := m.mount(ctx, o); err != nil {
		return nil, errors.Join(err, device.close())
	}
	return m, nil
}

func attachDisk(base Base, o MountOptions) (device, error) {
	if o.Via != ViaFUSE {
		d, err := attachKernel(base, o.Writable, o.Mark, o.Trace)
		if err == nil {
			return d, nil
		}
		if o.Via == ViaNBD {
			return nil, err
		}
		if o.Trace != nil {
			o.Trace.Printf("going on by FUSE: %v", err)
		}
	}
	return attachFUSE(base, o.Writable, o.Trace)
}

func (m *Mount) mount(ctx context.Context, o MountOptions) error {
	device := m.Device()
	if o.Format > 0 {
		if err := tool(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(o.Format), device); err != nil {
			return fmt.Errorf("making a file system: %w", err)
		}
	}
	if o.Verify {
		if err := tool(ctx, "e2fsck", "-fn", device); err != nil {
			return fmt.Errorf("checking the file system: %w", err)
		}
	}
	flags := "nodev,nosuid"
	if !o.Writable {
		flags += ",ro"
	}
	// Not to be interrupted: then nobody would know whether it is mounted.
	if err := tool(context.WithoutCancel(ctx), "mount", "-t", "ext4", "-o", flags, "--", device, m.dir); err != nil {
		return fmt.Errorf("mounting on %s: %w", m.dir, err)
	}
	if err := m.device.keep(); err != nil {
		return errors.Join(fmt.Errorf("mounting on %s: %w", m.dir, err), tool(context.WithoutCancel(ctx), "umount", "--", m.dir))
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

// Device is what is mounted.
func (m *Mount) Device() string { return m.device.name() }

// Via is how the disk became a device: ViaNBD or ViaFUSE.
func (m *Mount) Via() Via { return m.device.via() }

// ErrBusy says that a file system is still in use by others.
var ErrBusy = errors.New("it is still in use")

// Close unmounts. While others use the file system it waits for them, at most patience; then it takes the mount out of their sight and returns an error
// that wraps ErrBusy. The disk is served on until Close returns, and no longer.
func (m *Mount) Close(patience time.Duration) error {
	return errors.Join(m.unmount(patience), m.device.close())
}

func (m *Mount) unmount(patience time.Duration) error {
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
	select {
	case <-m.device.done():
		return nil
	case <-time.After(settling):
		return fmt.Errorf("unmounted %s, but the device %s: %w", m.dir, m.Device(), ErrBusy)
	}
}
