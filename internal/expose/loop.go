package expose

import (
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// loopTries is how often a free loop device is asked for: others may be quicker.
const loopTries = 64

// AttachLoop makes a block device of a file. The kernel keeps the file, and lets go of it with the last user of the device: the caller opens or mounts
// the device and then closes what AttachLoop returned. It takes root.
func AttachLoop(fd int, writable bool) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("making a loop device: %w", err)
	}
	defer control.Close()
	for try := range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("asking for a loop device: %w", err)
		}
		device, err := attach(fmt.Sprintf("/dev/loop%d", n), fd, writable)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return device, err
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
	return nil, errors.New("making a loop device: all are taken")
}

func attach(path string, fd int, writable bool) (*os.File, error) {
	mode := os.O_RDWR
	// Directly, past the page cache of the file below: one cache is enough, and FUSE is nearly twice as fast so.
	c := unix.LoopConfig{Fd: uint32(fd), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
	if !writable {
		mode = os.O_RDONLY
		c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	device, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, fmt.Errorf("making a loop device: %w", err)
	}
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &c); err != nil {
		device.Close()
		return nil, fmt.Errorf("making the loop device %s: %w", path, err)
	}
	_ = os.WriteFile("/sys/block/"+path[len("/dev/"):]+"/queue/read_ahead_kb", []byte("2048"), 0) // else it reads little at a time
	return device, nil
}

// loopDisk is a disk as a file of a FUSE file system, and that as a loop device.
type loopDisk struct {
	fuse   *FUSEServer
	device *os.File
}

func attachFUSE(base Base, writable bool, trace *log.Logger) (*loopDisk, error) {
	server, err := ServeFUSE([]FUSEFile{{Name: "disk", Base: base, Writable: writable}}, trace)
	if err != nil {
		return nil, err
	}
	fd, _ := server.FD("disk")
	device, err := AttachLoop(fd, writable)
	if err != nil {
		server.Close()
		return nil, err
	}
	return &loopDisk{fuse: server, device: device}, nil
}

func (d *loopDisk) via() Via { return ViaFUSE }

func (d *loopDisk) name() string { return d.device.Name() }

// keep leaves the device to its users, and the file to the device.
func (d *loopDisk) keep() error { return d.close() }

func (d *loopDisk) done() <-chan struct{} { return d.fuse.Done() }

// close takes the device from nobody who uses it: the end of this process does.
func (d *loopDisk) close() error {
	d.fuse.Close()
	if err := d.device.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("closing %s: %w", d.device.Name(), err)
	}
	return nil
}
