package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeApt puts a stand-in for mmdebstrap into the PATH: it notes its
// arguments, prints what is in the file "says" as messages if it is to
// simulate, and writes the file "tree" otherwise. Then it does what "then" says.
func fakeApt(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script := `#!/bin/sh
cd ` + dir + `
echo "$*" >> calls
case "$*" in
*--simulate*) cat says >&2 ;;
*) cat tree ;;
esac
. ./then
`
	for name, text := range map[string]string{"mmdebstrap": script, "says": "", "tree": "", "then": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func calls(t *testing.T, dir string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

const simulation = `I: simulate installing
Inst libc6 (2.36-9 Debian:12.1/stable [amd64]) []
Inst base-files [12.3] (12.4 Debian:12.1/stable, Debian-Security:12/stable-security [all])
Inst odd:i386 (1.0 Debian:12.1/stable [i386])
Conf libc6 (2.36-9 Debian:12.1/stable [amd64])
Inst libc6 (2.36-9 Debian:12.1/stable [amd64])
`

func status(packages ...string) string {
	var b strings.Builder
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		fmt.Fprintf(&b, "Package: %s\nStatus: install ok installed\nVersion: %s\nDescription: x\n Package: none\n\n", name, version)
	}
	return b.String() + "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
}

func TestApt(t *testing.T) {
	needRoot(t)
	dir := fakeApt(t)
	put(t, dir, "says", simulation)
	now := time.Now()
	old := time.Unix(1600000000, 5000)
	put(t, dir, "tree", string(pack(t,
		&tar.Header{Name: "./", Typeflag: tar.TypeDir, ModTime: now.Add(time.Minute)},
		&tar.Header{Name: "./usr/bin/old", Uname: "#!", ModTime: old},
		&tar.Header{Name: "./etc/made", Uname: "x", ModTime: now.Add(time.Minute)},
		&tar.Header{Name: "./var/lib/apt/lists/partial", Typeflag: tar.TypeDir, Uid: 42, ModTime: old},
		&tar.Header{Name: "./var/lib/dpkg/status", Uname: status("libc6=2.36-9", "base-files=12.4", "odd=1.0"), ModTime: now.Add(time.Minute)},
	)))
	b := builder(t, Options{AptDir: t.TempDir()})
	p := Platform{Arch: "amd64"}
	img, err := b.Resolve(context.Background(), "apt:bookworm/curl, bash,curl", p)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"base-files=12.4", "libc6=2.36-9", "odd:i386=1.0"}, img.Packages); diff != "" {
		t.Error(diff)
	}
	if img.Config.Cmd == nil || !strings.HasPrefix(img.Config.Env[0], "PATH=/usr") {
		t.Errorf("%+v", img.Config)
	}
	again, err := b.Resolve(context.Background(), "apt:bookworm/bash,curl", p)
	if err != nil || again.Digest != img.Digest {
		t.Errorf("%v, %v", again, err)
	}
	if n := len(calls(t, dir)); n != 1 {
		t.Errorf("apt was asked %d times", n)
	}
	path, err := b.Ext4(context.Background(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, path)
	mountExt4(t, path, func(mnt string) {
		for _, name := range []string{"", "/etc/made", "/usr/bin/old"} {
			var st unix.Stat_t
			if err := unix.Stat(mnt+name, &st); err != nil || st.Mtim.Sec != old.Unix() {
				t.Errorf("%s is of %v: %v", name, st.Mtim, err)
			}
		}
	})
	mountExt4(t, path, func(mnt string) {
		var st unix.Stat_t
		if err := unix.Stat(mnt+"/var/lib/apt/lists/partial", &st); err != nil || st.Uid != 0 {
			t.Errorf("apt's folder belongs to %d: %v", st.Uid, err)
		}
	})
	args := calls(t, dir)[1]
	for _, want := range []string{"--variant=minbase", "--architectures=amd64", "--include=bash,curl", "bookworm -", "--customize-hook="} {
		if !strings.Contains(args, want) {
			t.Errorf("no %s in %s", want, args)
		}
	}

	// Other packages are another image.
	put(t, dir, "says", strings.Replace(simulation, "12.4", "12.5", 1))
	fresh := builder(t, Options{AptDir: t.TempDir()})
	other, err := fresh.Resolve(context.Background(), "apt:bookworm/bash,curl", p)
	if err != nil || other.Digest == img.Digest {
		t.Fatalf("%v, %v", other, err)
	}
	// And those that are then installed must be those that were resolved.
	asked := len(calls(t, dir))
	if _, err := fresh.Ext4(context.Background(), other, nil); err == nil || !strings.Contains(err.Error(), "base-files=12.5") {
		t.Errorf("%v", err)
	}
	put(t, dir, "says", simulation)
	if _, err := fresh.Resolve(context.Background(), "apt:bookworm/bash,curl", p); err != nil || len(calls(t, dir)) != asked+2 {
		t.Errorf("apt was not asked again: %v", err)
	}
}

func TestAptFails(t *testing.T) {
	dir := fakeApt(t)
	for _, c := range []struct {
		ref, says string
		want      error
		hint      string
	}{
		{"apt:bookworm/nosuch", "E: Unable to locate package nosuch", ErrNotFound, ""},
		{"apt:nosuite", "E: The repository 'http://x nosuite Release' does not have a Release file.", ErrNotFound, "suite"},
		{"apt:bookworm/a", "E: newuidmap: not found", nil, "subuid"},
		{"apt:bookworm/a", "E: unable to pick chroot mode automatically (use --mode for manual selection)", nil, "uidmap"},
		{"apt:bookworm/b", "E: something else", nil, ""},
		{"apt:", "", ErrReference, "bookworm"},
		{"apt:Book Worm", "", ErrReference, ""},
		{"apt:bookworm/--option", "", ErrReference, ""},
		{"apt:bookworm/$(id)", "", ErrReference, ""},
	} {
		put(t, dir, "says", "I: working\n"+c.says+"\n")
		put(t, dir, "then", "exit 1")
		b := builder(t, Options{AptDir: t.TempDir()})
		_, err := b.Resolve(context.Background(), c.ref, Platform{Arch: "amd64"})
		var e *Error
		if !errors.As(err, &e) || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%s: %v", c.ref, err)
		}
		if !strings.Contains(fmt.Sprint(err), strings.TrimPrefix(c.says, "E: ")) {
			t.Errorf("%s: does not say why: %v", c.ref, err)
		}
	}

	// The build fails after half an archive.
	put(t, dir, "says", simulation)
	put(t, dir, "then", "")
	b := builder(t, Options{AptDir: t.TempDir()})
	img, err := b.Resolve(context.Background(), "apt:bookworm", Platform{Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "tree", string(pack(t, &tar.Header{Name: "f", Uname: "x"}))[:1024])
	put(t, dir, "then", "echo 'E: out of luck' >&2; exit 1")
	if _, err := b.Ext4(context.Background(), img, nil); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("%v", err)
	}

	t.Setenv("PATH", t.TempDir())
	_, err = builder(t, Options{AptDir: t.TempDir()}).Resolve(context.Background(), "apt:bookworm", Platform{})
	var e *Error
	if !errors.As(err, &e) || e.Hint != "apt install mmdebstrap" {
		t.Errorf("%v", err)
	}
}

// TestAptCancelled ends a build whose children don't want to.
func TestAptCancelled(t *testing.T) {
	dir := fakeApt(t)
	put(t, dir, "says", simulation)
	b := builder(t, Options{AptDir: t.TempDir()})
	img, err := b.Resolve(context.Background(), "apt:bookworm", Platform{Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "then", "sleep 600 & echo $! > child.new; mv child.new child; wait")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := b.Ext4(ctx, img, nil)
		ended <- err
	}()
	until := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within a minute: %s", what)
			}
		}
	}
	var pid string
	until("it has a child", func() bool {
		raw, err := os.ReadFile(filepath.Join(dir, "child"))
		pid = strings.TrimSpace(string(raw))
		return err == nil
	})
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	case <-time.After(time.Minute): // the child sleeps for ten
		t.Fatal("it waits for its child")
	}
	until("its child has ended", func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// TestSweepSparesMounts clears up a folder in which a killed tool left
// something mounted.
func TestSweepSparesMounts(t *testing.T) {
	needRoot(t)
	precious := t.TempDir()
	put(t, precious, "precious", "x")
	cacheDir := filepath.Join(t.TempDir(), "with blank")
	b, err := New(cacheDir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(cacheDir, "tmp", "build-1", "root", "proc")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", precious, at).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	if _, err := New(cacheDir, Options{}); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, b)
	if _, err := os.Stat(precious + "/precious"); err != nil {
		t.Fatalf("what was mounted is gone: %v", err)
	}
}

func TestHostSources(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "sources.list", "# none\ndeb-src http://one/debian bookworm main\ndeb [arch=amd64 signed-by=/k.gpg] http://one/debian bookworm main contrib # why\ndeb http://one/debian sid main\n")
	put(t, dir, "sources.list.d/b.sources", "Types: deb deb-src\n# a note\nURIs: http://two/security\nSuites: bookworm-security other\nComponents: main\nSigned-By: /k.gpg\n\nEnabled: no\nTypes: deb\nURIs: http://off\nSuites: bookworm\nComponents: main\n")
	put(t, dir, "sources.list.d/c.sources", "Types: deb\nURIs: http://three\nSuites: bookworm\nComponents: stable\n")
	put(t, dir, "sources.list.d/d.sources.off", "Types: deb\nURIs: http://four\nSuites: bookworm\nComponents: main\n")
	want := "Types: deb\nURIs: http://one/debian\nSuites: bookworm\nComponents: main contrib\nSigned-By: /k.gpg\n\n" +
		"Types: deb\nURIs: http://two/security\nSuites: bookworm-security\nComponents: main\nSigned-By: /k.gpg\n"
	got, err := hostSources(dir, "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, suite := range []string{"trixie", "buster"} {
		if got, err := hostSources(dir, suite); got != "" || err != nil {
			t.Errorf("%s: %q, %v", suite, got, err)
		}
	}
	if got, err := hostSources(t.TempDir(), "bookworm"); got != "" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
