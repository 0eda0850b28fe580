package firecracker

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestMayBeServed looks at devices and settings with which an ordinary user may or may not have memory served.
func TestMayBeServed(t *testing.T) {
	device, sysctl := filepath.Join(t.TempDir(), "device"), filepath.Join(t.TempDir(), "sysctl")
	gid := uint32(os.Getegid())
	member, other := &syscall.Credential{Uid: 1, Groups: []uint32{gid}}, &syscall.Credential{Uid: 1, Groups: []uint32{gid + 1}}
	check := func(what string, who *syscall.Credential, want bool) {
		t.Helper()
		if err := mayBeServed(who, device, sysctl); (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("neither device nor setting", other, false)
	for text, want := range map[string]bool{"0\n": false, "1\n": true} {
		if err := os.WriteFile(sysctl, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		check("setting "+text, other, want)
	}
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("a device of root's, whatever the setting", other, false)
	check("ourselves", nil, true)
	for mode, who := range map[os.FileMode]*syscall.Credential{0o666: other, 0o660: member} {
		if err := os.Chmod(device, mode); err != nil {
			t.Fatal(err)
		}
		check(mode.String(), who, true)
	}
	if err := os.Chmod(device, 0o660); err != nil {
		t.Fatal(err)
	}
	check("a device of another group's", other, false)
}
