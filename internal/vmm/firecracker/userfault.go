package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// userfaults is where a VMM asks the kernel to have its page faults handled: it opens the device, and makes a system call where there is none, as before Linux 6.1.
type userfaults struct{ device, sysctl string }

func hostUserfaults() userfaults {
	return userfaults{"/dev/userfaultfd", "/proc/sys/vm/unprivileged_userfaultfd"}
}

// UnservedError says why no VMM may have its memory served page by page on this host, and what mends that.
type UnservedError struct{ Why, Fix string }

func (e *UnservedError) Error() string {
	return "serving a machine's memory page by page: " + e.Why + " (" + e.Fix + ")"
}

// fixSysctl allows the system call.
const fixSysctl = "sudo sysctl -w vm.unprivileged_userfaultfd=1"

// fixRule gives the device to a group, or to all.
func fixRule(access string) string {
	return `echo 'KERNEL=="userfaultfd", ` + access + `' | sudo tee /etc/udev/rules.d/65-userfaultfd.rules && sudo udevadm control --reload && sudo udevadm trigger /dev/userfaultfd`
}

// allow refuses a VMM that may not ask. It runs as who says; nil: as ourselves.
func (u userfaults) allow(who *syscall.Credential) error {
	if who == nil {
		return u.allowUs()
	}
	var st unix.Stat_t
	err := unix.Stat(u.device, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return u.allowCall()
	case err != nil:
		return fmt.Errorf("looking at %s: %w", u.device, err)
	case st.Mode&0o006 == 0o006, st.Mode&0o060 == 0o060 && slices.Contains(who.Groups, st.Gid):
		return nil
	case len(who.Groups) == 0:
		return &UnservedError{"a VMM that is not root may not open " + u.device, fixRule(`MODE="0666"`)}
	}
	return &UnservedError{"a VMM that is not root may not open " + u.device, fixRule(`GROUP="kvm", MODE="0660"`)}
}

// allowUs is allow for what this process may do itself: that is tried, since being root is not enough where capabilities or devices were taken away.
func (u userfaults) allowUs() error {
	fd, err := unix.Open(u.device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return unix.Close(fd)
	case !errors.Is(err, fs.ErrNotExist) && os.Geteuid() == 0:
		return &UnservedError{fmt.Sprintf("root may not open %s here: %v", u.device, err), "let this container have the device"}
	case !errors.Is(err, fs.ErrNotExist):
		return &UnservedError{"you may not open " + u.device, fixRule(`GROUP="kvm", MODE="0660"`) + ", and be in that group: sudo usermod -aG kvm $USER, then log in again"}
	}
	call, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	switch {
	case errno == 0:
		return unix.Close(int(call))
	case errors.Is(errno, fs.ErrPermission):
		return u.allowCall()
	}
	return &UnservedError{fmt.Sprintf("this kernel can't: %v", errno), "use one that was built with CONFIG_USERFAULTFD"}
}

// allowCall tells whether everybody may make the system call.
func (u userfaults) allowCall() error {
	if text, err := os.ReadFile(u.sysctl); err == nil && strings.TrimSpace(string(text)) == "1" {
		return nil
	}
	return &UnservedError{"only root, with all of its capabilities, may have page faults handled", fixSysctl}
}

// allowJailed is allow for a VMM in a jail: the jailer gives it the device, if there is one.
func (u userfaults) allowJailed() error {
	if _, err := os.Stat(u.device); err == nil {
		return nil
	}
	return u.allow(&syscall.Credential{})
}
