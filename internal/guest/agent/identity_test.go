package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
)

func TestHosts(t *testing.T) {
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for name, c := range map[string]struct{ known, before, want string }{
		"empty":        {"", "", local + "127.0.1.1\tme\n"},
		"renamed":      {local + "127.0.1.1\told\n", "old", "127.0.1.1\tme\n" + local},
		"image's own":  {"# localhost below\n127.0.0.1 localhost", "", "127.0.1.1\tme\n# localhost below\n127.0.0.1 localhost\n"},
		"user's lines": {"127.0.1.1\told\n10.0.0.1 db old\n", "old", local + "127.0.1.1\tme\n10.0.0.1 db old\n"},
		"again":        {"127.0.1.1\tme\n" + local, "me", "127.0.1.1\tme\n" + local},
	} {
		if got := string(hosts([]byte(c.known), c.before, "me")); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestCheckHostname(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "spore-1.local": true, "UPPER_case9": true, strings.Repeat("a", 64): true,
		strings.Repeat("a", 65): false, "-a": false, ".a": false, "a b": false, "a\nb": false, "ä": false, "a/b": false,
	} {
		if err := checkHostname(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestMountPoint(t *testing.T) {
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	for _, d := range []string{"etc", "real/etc"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("etc/hosts"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf", "etc/absolute": at("run/there"), "linked": "real/etc", "real/etc/up": "../file",
		"etc/loop": "loop", "etc/two": "hosts",
	} {
		if err := os.Symlink(target, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"etc/hosts": "etc/hosts", "etc/machine-id": "etc/machine-id", "none/hostname": "none/hostname", "etc/resolv.conf": "run/systemd/resolve/stub-resolv.conf",
		"etc/absolute": "run/there", "linked/up": "real/file", "etc/two": "etc/hosts",
	} {
		got, err := mountPoint(at(path))
		if err != nil || got != at(want) {
			t.Errorf("%s: %s, %v; want %s", path, got, err, at(want))
			continue
		}
		if st, err := os.Stat(got); err != nil || !st.Mode().IsRegular() {
			t.Errorf("%s leads to nothing that can be mounted over: %v", path, err)
		}
	}
	if got, err := mountPoint(at("etc/loop")); err == nil {
		t.Errorf("a loop leads to %s", got)
	}
}

func TestSameNet(t *testing.T) {
	base := api.Net{Address: "10.0.2.15/24", DNS: []string{"10.0.2.3"}}
	for name, change := range map[string]func(*api.Net){
		"interface": func(n *api.Net) { n.Interface = "eth1" }, "mac": func(n *api.Net) { n.MAC = "x" }, "address": func(n *api.Net) { n.Address = "" },
		"gateway": func(n *api.Net) { n.Gateway = "x" }, "dns": func(n *api.Net) { n.DNS = nil },
	} {
		other := base
		change(&other)
		if sameNet(&base, &other) {
			t.Errorf("%s makes no difference", name)
		}
	}
	if other := base; !sameNet(&base, &other) {
		t.Error("equal ones differ")
	}
}

// The kernel itself says which requests are well-formed: as an ordinary user they are refused, as the superuser an interface of that name is missing.
func TestUnknownInterface(t *testing.T) {
	for _, name := range []string{"", "a-name-that-is-too-long"} {
		if err := withInterface(name, func(*netInterface) error { return nil }); err == nil {
			t.Errorf("interface %q is accepted", name)
		}
	}
	err := withInterface("nosuch0", func(i *netInterface) error { return i.up(true) })
	if err == nil || !strings.Contains(err.Error(), unix.ENODEV.Error()) {
		t.Errorf("an interface that is not there: %v", err)
	}
}
