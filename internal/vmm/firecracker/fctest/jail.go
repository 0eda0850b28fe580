package fctest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// InstallStatic makes a folder with a Firecracker of a version, whose path it returns, and its jailer. Unlike those of Install they need no files beside them, so that they
// run in a jail.
func InstallStatic(t *testing.T, version string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fctest") // not TempDir: the VMM may be another user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary := filepath.Join(dir, "firecracker")
	build := exec.Command("go", "build", "-ldflags", "-X main.version="+version, "-o", binary, "github.com/sporevm/spore/internal/vmm/firecracker/fctest/testdata/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the Firecracker for tests: %v\n%s", err, out)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Link(binary, filepath.Join(dir, "jailer"))); err != nil {
		t.Fatal(err)
	}
	return binary
}

// Program is such a program. It does not return.
func Program(version string) {
	run := serve
	if filepath.Base(os.Args[0]) == "jailer" {
		run = jail
	}
	if err := run(version, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s for tests: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// jail does what the jailer does, in its order: a root that holds the program, a network, control groups, the root as the only one, a user.
func jail(version string, args []string) error {
	runtime.LockOSThread() // it is this thread that is jailed
	var cgroups, limits list
	flags := flag.NewFlagSet("jailer", flag.ContinueOnError)
	id := flags.String("id", "", "")
	program := flags.String("exec-file", "", "")
	uid := flags.Int("uid", -1, "")
	gid := flags.Int("gid", -1, "")
	base := flags.String("chroot-base-dir", "/srv/jailer", "")
	netns := flags.String("netns", "", "")
	cgroupVersion := flags.Int("cgroup-version", 1, "")
	parent := flags.String("parent-cgroup", "", "")
	flags.Var(&cgroups, "cgroup", "")
	flags.Var(&limits, "resource-limit", "")
	ask := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *ask {
		fmt.Printf("Jailer v%s\n\n", version)
		return nil
	}
	name := filepath.Base(*program)
	if *id == "" || len(*id) > 64 || *uid < 0 || *gid < 0 || !strings.Contains(name, "firecracker") {
		return fmt.Errorf("id %q, program %q, user %d, group %d", *id, *program, *uid, *gid)
	}
	if _, err := os.Stat(*base); err != nil {
		return err
	}
	root := filepath.Join(*base, name, *id, "root")
	if err := errors.Join(os.MkdirAll(root, 0o700), copyFile(*program, filepath.Join(root, name))); err != nil {
		return err
	}
	if *netns != "" {
		if err := joinNetwork(*netns); err != nil {
			return err
		}
	}
	for _, c := range cgroups {
		if err := joinGroup(c, *cgroupVersion, filepath.Join(*parent, *id)); err != nil {
			return err
		}
	}
	if err := unix.CloseRange(3, 1<<31, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	const userfaults = "/dev/userfaultfd"
	var device unix.Stat_t
	hasFaults := unix.Stat(userfaults, &device) == nil
	if err := pivot(root); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	for _, dir := range []string{"/", "/dev", "/run"} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700), os.Chown(dir, *uid, *gid)); err != nil {
			return err
		}
	}
	if hasFaults {
		if err := errors.Join(unix.Mknod(userfaults, unix.S_IFCHR|0o600, int(device.Rdev)), os.Chown(userfaults, *uid, *gid)); err != nil {
			return err
		}
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(*gid), syscall.Setuid(*uid)); err != nil {
		return err
	}
	own := append([]string{"/" + name, "--id", *id, "--start-time-us", "1", "--start-time-cpu-us", "1", "--parent-cpu-time-us", "1"}, flags.Args()...)
	return syscall.Exec("/"+name, own, os.Environ())
}

func joinNetwork(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}

// joinGroup makes a control group with one limit and moves this process into it.
func joinGroup(limit string, version int, group string) error {
	file, value, _ := strings.Cut(limit, "=")
	controller, _, _ := strings.Cut(file, ".")
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		switch {
		case len(f) < 4:
		case version == 2 && f[2] == "cgroup2":
			dir := f[1]
			for _, part := range strings.Split(group, "/") { // each has to let the next have the controller
				if err := errors.Join(os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0), os.MkdirAll(filepath.Join(dir, part), 0o755)); err != nil {
					return err
				}
				dir = filepath.Join(dir, part)
			}
			return joinFolder(dir, file, value)
		case version == 1 && f[2] == "cgroup" && strings.Contains(","+f[3]+",", ","+controller+","):
			return joinFolder(filepath.Join(f[1], group), file, value)
		}
	}
	return fmt.Errorf("no control group %s of version %d", controller, version)
}

func joinFolder(dir, file, value string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, file), []byte(value), 0), os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, os.Getpid()), 0))
}

// pivot makes a folder all that this thread sees.
func pivot(root string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := errors.Join(unix.Chdir(root), unix.Mkdir("old_root", 0o700), unix.PivotRoot(".", "old_root"), unix.Chdir("/"), unix.Unmount("old_root", unix.MNT_DETACH)); err != nil {
		return err
	}
	return os.Remove("old_root")
}
