package expose

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// kernelPatience is how long the kernel waits for a reply. A read from a store that is far away and failing takes minutes; later than that, nobody is there:
// a server that died has no more requests of its own, but those under way would otherwise be waited for until somebody disconnects the device.
const kernelPatience = 10 * time.Minute

// kernelDisk is a disk as a device of Linux's own NBD client, which asks this process for it over a pair of sockets.
//
// Three things let go of the device: the end of the mount, from keep on; close; and ReleaseNBD, should this process have been killed.
type kernelDisk struct {
	client kernelClient
	index  int
	mark   string
	flags  uint64
	cancel context.CancelFunc
	ended  chan struct{}
}

// attachKernel makes a device of a disk. mark is what ReleaseNBD finds the device by. The error wraps ErrNoNBD where the kernel has nothing that will do.
func attachKernel(base Base, writable bool, mark string, trace *log.Logger) (*kernelDisk, error) {
	client, err := findKernelClient()
	if err != nil {
		return nil, err
	}
	if base.Size()%kernelSector != 0 {
		return nil, fmt.Errorf("a disk of %d bytes, which are not whole sectors, can't be served to the kernel by NBD", base.Size())
	}
	disk, ok := base.(Disk)
	switch {
	case !ok && writable:
		return nil, errors.New("serving a disk to the kernel by NBD: it can't be written to")
	case !ok:
		disk = readOnlyDisk{base}
	}
	if trace != nil {
		disk = tracedDisk{disk, trace}
	}
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close() // the kernel keeps the socket itself
	d := &kernelDisk{client: client, mark: mark, ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	server := NewNBDServer(disk, NBDOptions{ReadOnly: !writable})
	go func() { // before it is connected, for there are programs that look at each new device at once
		defer close(d.ended)
		err := server.serveConn(ctx, ours, true)
		if trace != nil && err != nil {
			trace.Print(err)
		}
	}()
	if err := d.connect(connection{size: base.Size(), flags: server.flags(), timeout: uint64(kernelPatience / time.Second), socket: theirs.Fd(), mark: mark}); err != nil {
		err = errors.Join(err, ReleaseNBD(mark)) // there may be a device of which we were not told
		d.stop()
		return nil, err
	}
	return d, nil
}

func (d *kernelDisk) connect(c connection) error {
	there := devices()
	var err error
	if d.index, err = d.client.connect(c); err != nil {
		return err
	}
	if there[d.name()] == "" {
		d.flags = kernelDestroy // it was made for us; those that were there before are others' too
	}
	err = d.client.setFlags(d.index, d.mark, d.flags)
	if _, missing := os.Stat(d.name()); err == nil && missing != nil {
		err = fmt.Errorf("%w: %w", ErrNoNBD, missing)
	} else if err == nil && devices()[d.name()] != d.mark { // without which nobody could find it again: Linux before 5.14
		err = fmt.Errorf("%w: it is too old", ErrNoNBD)
	}
	if err != nil {
		return errors.Join(err, d.client.disconnect(d.index))
	}
	for name, value := range map[string]string{"read_ahead_kb": "2048", "max_sectors_kb": "1024"} { // else it reads little at a time
		_ = os.WriteFile(filepath.Join("/sys/block", filepath.Base(d.name()), "queue", name), []byte(value), 0)
	}
	return nil
}

func (d *kernelDisk) via() Via { return ViaNBD }

func (d *kernelDisk) name() string { return "/dev/nbd" + strconv.Itoa(d.index) }

// keep makes the device the mount's: it goes with it. Before there is a mount, whoever closes the device last, and be it udev, would end it.
func (d *kernelDisk) keep() error {
	return d.client.setFlags(d.index, d.mark, d.flags|kernelOnClose)
}

func (d *kernelDisk) done() <-chan struct{} { return d.ended }

func (d *kernelDisk) close() error {
	err := ReleaseNBD(d.mark)
	d.stop()
	return err
}

// stop ends the server, and waits until it leaves the disk alone.
func (d *kernelDisk) stop() {
	d.cancel()
	<-d.ended
}

// unmarked stands for the mark of a device that has none.
const unmarked = "-"

// devices returns the NBD devices of this host with their marks.
func devices() map[string]string {
	out := map[string]string{}
	all, _ := filepath.Glob("/sys/block/nbd*")
	for _, dir := range all {
		mark, err := os.ReadFile(filepath.Join(dir, "backend"))
		if text := strings.TrimSpace(string(mark)); err == nil && text != "" {
			out["/dev/"+filepath.Base(dir)] = text
		} else {
			out["/dev/"+filepath.Base(dir)] = unmarked
		}
	}
	return out
}

// ReleaseNBD disconnects the device that MountDisk has made with a mark, if there still is one: its process may have been killed before it could. What waits
// for that process fails.
func ReleaseNBD(mark string) error {
	for name, m := range devices() {
		if m != mark {
			continue
		}
		client, err := findKernelClient()
		if err != nil {
			return err
		}
		index, err := strconv.Atoi(strings.TrimPrefix(name, "/dev/nbd"))
		if err != nil {
			return fmt.Errorf("disconnecting %s: %w", name, err)
		}
		if err := client.disconnect(index); err != nil && devices()[name] == mark {
			return err
		}
	}
	return nil
}
