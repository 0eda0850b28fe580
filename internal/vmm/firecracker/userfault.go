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

// userfaultDevice is what Firecracker opens to have its memory served; kernels before 6.1 have no such device, and a system call alone.
const (
	userfaultDevice = "/dev/userfaultfd"
	userfaultSysctl = "/proc/sys/vm/unprivileged_userfaultfd"
)

// mayBeServed refuses a machine whose memory is to be served where its VMM, who runs as who says (nil: as ourselves), may not ask the kernel for that.
func mayBeServed(who *syscall.Credential, device, sysctl string) error {
	if who == nil && os.Geteuid() == 0 {
		return nil
	}
	var st unix.Stat_t
	err := unix.Stat(device, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if text, err := os.ReadFile(sysctl); err == nil && strings.TrimSpace(string(text)) == "1" {
			return nil
		}
		return errors.New("serving its memory: a VMM that is not root may not handle page faults: sudo sysctl -w vm.unprivileged_userfaultfd=1")
	case err != nil:
		return fmt.Errorf("serving its memory: %w", err)
	case st.Mode&0o006 == 0o006:
		return nil
	case who != nil && st.Mode&0o060 == 0o060 && slices.Contains(who.Groups, st.Gid):
		return nil
	case who == nil && unix.Access(device, unix.R_OK|unix.W_OK) == nil:
		return nil
	}
	return fmt.Errorf("serving its memory: a VMM that is not root may not open %s: give it to the group that may open /dev/kvm (spore doctor tells how)", device)
}

// mayBeServedInJail is mayBeServed for a VMM in a jail: the jailer gives it the device, if there is one.
func mayBeServedInJail(device, sysctl string) error {
	if _, err := os.Stat(device); err == nil {
		return nil
	}
	return mayBeServed(&syscall.Credential{}, device, sysctl)
}
