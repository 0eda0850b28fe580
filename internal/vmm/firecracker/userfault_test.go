package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestUserfaults looks at devices and settings with which a VMM may or may not have memory served, and at what it is told to do about it.
func TestUserfaults(t *testing.T) {
	u := userfaults{filepath.Join(t.TempDir(), "device"), filepath.Join(t.TempDir(), "sysctl")}
	gid := uint32(os.Getegid())
	member, other, nobody := &syscall.Credential{Uid: 1, Groups: []uint32{gid}}, &syscall.Credential{Uid: 1, Groups: []uint32{gid + 1}}, &syscall.Credential{Uid: 1}
	check := func(what string, err error, fix string) {
		t.Helper()
		var no *UnservedError
		if !errors.As(err, &no) && (err != nil || fix != "") || no != nil && (fix == "" || !strings.Contains(no.Fix, fix) || !strings.Contains(err.Error(), fix)) {
			t.Errorf("%s: %v, want a way to mend it with %q", what, err, fix)
		}
	}
	check("neither device nor setting", u.allow(other), fixSysctl)
	check("neither, in a jail", u.allowJailed(), fixSysctl)
	for text, fix := range map[string]string{"0\n": fixSysctl, "1\n": ""} {
		if err := os.WriteFile(u.sysctl, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		check("setting "+text, u.allow(other), fix)
		check("in a jail, setting "+text, u.allowJailed(), fix)
	}
	if err := os.WriteFile(u.sysctl, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("ourselves, by the system call", u.allowUs(), "") // if not by our capabilities, then by the setting
	if err := os.WriteFile(u.device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("a device of root's, whatever the setting", u.allow(other), `GROUP="kvm"`)
	check("a device of root's, and no group", u.allow(nobody), `MODE="0666"`)
	check("a device of root's, in a jail", u.allowJailed(), "")
	check("ourselves, by the device", u.allow(nil), "")
	for mode, who := range map[os.FileMode]*syscall.Credential{0o666: other, 0o660: member} {
		if err := os.Chmod(u.device, mode); err != nil {
			t.Fatal(err)
		}
		check(mode.String(), u.allow(who), "")
	}
	if err := os.Chmod(u.device, 0o660); err != nil {
		t.Fatal(err)
	}
	check("a device of another group's", u.allow(other), `GROUP="kvm"`)
	// A folder can't be opened for writing, by root neither, just as a device that a container does not have.
	if err := errors.Join(os.Remove(u.device), os.Mkdir(u.device, 0o700)); err != nil {
		t.Fatal(err)
	}
	fix := "sudo usermod"
	if os.Geteuid() == 0 {
		fix = "container"
	}
	check("a device that nobody may open", u.allow(nil), fix)
}
