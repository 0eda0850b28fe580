package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket"
	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/pagemap"
)

// jailedCounter is a counter for jails of its own.
type jailedCounter struct {
	*counter
	dir   string
	users string // as a process's status has them begin
}

func newJailedCounter(t *testing.T, fc string, st store.Store, location string) *jailedCounter {
	t.Helper()
	found, err := firecracker.New(firecracker.Programs{Binary: fc}, nil).Installed(t.Context(), "amd64")
	if err == nil {
		err = firecracker.Jail{FirstID: 1, IDs: 1}.Check(t.Context(), fc, found.Version)
	}
	if err != nil {
		t.Skip(err)
	}
	j := &jailedCounter{counter: freezeCounter(t, fc, st), dir: filepath.Join(t.TempDir(), "jails")}
	first := 1_900_000_000 + os.Getpid()%100_000*100 // none of whom another test has
	j.users = fmt.Sprint(first / 100)
	j.env = append(j.env, "SPORE_STORE="+location, "SPORE_JAIL_DIR="+j.dir, fmt.Sprintf("SPORE_JAIL_USERS=%d-%d", first, first+9))
	return j
}

// isJailed checks what a machine's process is.
func (j *jailedCounter) isJailed(pid int) {
	j.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !strings.Contains(string(status), "\nUid:\t"+j.users) || !strings.Contains(string(status), "\nGid:\t"+j.users) {
		j.t.Errorf("the machine's process is no jailed user (%v):\n%s", err, status)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/etc", pid)); !os.IsNotExist(err) {
		j.t.Errorf("a jailed machine sees /etc (%v)", err)
	}
	for _, space := range []string{"mnt", "net"} {
		own, err := os.Readlink("/proc/self/ns/" + space)
		if its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, space)); err != nil || err2 != nil || its == own {
			j.t.Errorf("a jailed machine has the host's %s namespace (%v, %v)", space, err, err2)
		}
	}
	if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || !strings.Contains(string(groups), "/spore/spore-") {
		j.t.Errorf("the machine's control groups are %s (%v)", groups, err)
	}
}

// nothing checks that no jail is left: no mount, no folder, and, unless told otherwise, no control group.
func (j *jailedCounter) nothing(groups bool) {
	j.t.Helper()
	if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), j.dir) {
		j.t.Errorf("mounts are left (%v):\n%s", err, mounts)
	}
	if left, err := filepath.Glob(filepath.Join(j.dir, "room", "*")); err != nil || len(left) > 0 {
		j.t.Errorf("folders are left: %v (%v)", left, err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/spore/spore-*", "/sys/fs/cgroup/*/spore/spore-*"} {
		all, err := filepath.Glob(pattern)
		if err != nil {
			j.t.Fatal(err)
		}
		for _, group := range all {
			if groups && strings.Contains(filepath.Base(group), "-"+j.users) {
				j.t.Errorf("a control group is left: %s", group)
			}
		}
	}
}

// laidOut is the memory of a jailed machine whose snapshot is near.
func (j *jailedCounter) laidOut(pid int) *pagemap.Memory {
	j.t.Helper()
	files, err := filepath.Glob(filepath.Join(j.cache, "memory", "*.mem"))
	if err != nil || len(files) != 1 {
		j.t.Fatalf("memory is laid out in %v (%v)", files, err)
	}
	f, err := os.Open(files[0])
	if err != nil {
		j.t.Fatal(err)
	}
	defer f.Close()
	m, err := pagemap.OfFile(pid, f, j.bytes)
	if err != nil {
		j.t.Fatal(err)
	}
	return m
}

// spore runs another command.
func (j *jailedCounter) spore(args ...string) string {
	j.t.Helper()
	r := j.start(args...)
	return r.end(j.t)
}

// TestJail wakes a guest in a jail by the command line, and ends it in all the ways that there are: nothing of it stays.
func TestJail(t *testing.T) {
	onFirecrackers(t, func(t *testing.T, fc string) {
		location := filepath.Join(t.TempDir(), "store")
		st, err := store.OpenDir(location)
		if err != nil {
			t.Fatal(err)
		}
		j := newJailedCounter(t, fc, st, location)
		for how, end := range map[string]func(r *resumed, pid int){
			"an interrupt": func(r *resumed, pid int) {
				if err := r.Process.Signal(unix.SIGINT); err != nil {
					t.Fatal(err)
				}
				if said := r.end(t); !strings.Contains(said, "interrupted") {
					t.Errorf("spore resume says %q", said)
				}
				j.nothing(true)
			},
			"the end of the VMM": func(r *resumed, pid int) {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if said := r.end(t); !strings.Contains(said, "killed") {
					t.Errorf("spore resume says %q", said)
				}
				j.nothing(true)
			},
			"the end of spore": func(r *resumed, pid int) {
				if err := r.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				r.end(t)
				gone(t, pid)
				j.nothing(false)
				// The next who starts a machine removes the rest, with a jail or without.
				if said := j.spore("resume", "nothing"); !strings.Contains(said, "nothing") {
					t.Errorf("spore resume says %q", said)
				}
				j.nothing(true)
			},
		} {
			t.Run(how, func(t *testing.T) {
				parent := j.t
				j.t = t
				defer func() { j.t = parent }()
				r := j.resume("--jail")
				pid := j.vmm(r)
				j.isJailed(pid)
				j.counts(j.laidOut(pid))
				j.nothing(false)
				end(r, pid)
				gone(t, pid)
			})
		}
	})
}

// TestJailOfOtherCommands wakes a guest by the other commands that start machines: in a jail, if they are told so.
func TestJailOfOtherCommands(t *testing.T) {
	onFirecrackers(t, func(t *testing.T, fc string) {
		location := filepath.Join(t.TempDir(), "store")
		st, err := store.OpenDir(location)
		if err != nil {
			t.Fatal(err)
		}
		j := newJailedCounter(t, fc, st, location)
		for what, args := range map[string][]string{
			"verify":       {"verify", "--deep", "--jail", j.id.String()},
			"resume-build": {"resume-build", "-jail", "-jail-cgroup", "pids.max=99", "-storage", location, "-from-build", j.id.String(), "-iterations", "1"},
		} {
			t.Run(what, func(t *testing.T) {
				parent := j.t
				j.t = t
				defer func() { j.t = parent }()
				r := j.start(args...)
				pid := j.vmm(r)
				j.isJailed(pid)
				if err := r.Process.Signal(unix.SIGINT); err != nil {
					t.Fatal(err)
				}
				if said := r.end(t); !strings.Contains(said, "interrupted") {
					t.Errorf("spore %s says %q", what, said)
				}
				gone(t, pid)
				j.nothing(true)
			})
		}
	})
}

// TestJailFromBucket wakes a guest in a jail whose memory is served by the pager, to the machine's own user.
func TestJailFromBucket(t *testing.T) {
	onFirecrackers(t, func(t *testing.T, fc string) {
		location := services.URL("s3", "")
		st, err := bucket.Open(t.Context(), location, bucket.Options{TempDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		j := newJailedCounter(t, fc, st, location)
		r := j.resume("--jail", "--jail-cgroup", "pids.max=99")
		pid := j.vmm(r)
		j.isJailed(pid)
		memory, err := pagemap.OfUserfault(pid, j.bytes)
		if err != nil {
			t.Fatalf("its memory is not served by the pager: %v\n%s", err, r.said.String())
		}
		j.counts(memory)
		if err := r.Process.Signal(unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		r.end(t)
		gone(t, pid)
		j.nothing(true)
	})
}
