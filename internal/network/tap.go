package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// openTap attaches to this thread's tap interface of that name, which is made if it isn't there. Its frames begin with a struct virtio_net_hdr, as VMMs want
// it, so that checksums and segmentation can be left to whoever is last.
func openTap(name string) (*os.File, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, unable("sudo modprobe tun", "opening %s: %w", path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, unable(privilegeHint, "opening %s: %w", path, err)
	default:
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("attaching to the tap interface %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil // only now: one that is attached to nothing can't be polled
}

// makeTap makes a tap interface that stays when nobody is attached to it, for as long as its namespace.
func makeTap(name string) error {
	f, err := openTap(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("making the tap interface %s: %w", name, err)
	}
	return nil
}

// setSysctl writes a setting below /proc/sys/net, which shows those of the thread's namespace.
func setSysctl(name, value string) error {
	f, err := os.OpenFile("/proc/sys/net/"+name, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		return unable("in a container, run it privileged, with /proc/sys writable", "setting net/%s: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("setting net/%s to %s: %w", name, value, err)
	}
	return nil
}

// withoutIPv6 switches IPv6 off for an interface, or for "all" or "default".
func withoutIPv6(name string) error {
	err := setSysctl("ipv6/conf/"+name+"/disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the kernel has none
	}
	return err
}
