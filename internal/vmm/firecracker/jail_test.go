package firecracker

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

func TestJailArguments(t *testing.T) {
	j := Jail{Base: "/jails", CgroupVersion: 2, Cgroups: []string{"memory.max=1", "cpu.weight=5"}, ParentCgroup: "spore/machines", Limits: []string{"no-file=99"}}
	got := strings.Join(j.arguments("one-7", 7, "/bin/firecracker", "/run/netns/a", []string{"--api-sock", "x"}), " ")
	want := "--id one-7 --exec-file /bin/firecracker --uid 7 --gid 7 --chroot-base-dir /jails --cgroup-version 2 --cgroup memory.max=1 --cgroup cpu.weight=5 " +
		"--parent-cgroup spore/machines --resource-limit no-file=99 --netns /run/netns/a -- --api-sock x"
	if got != want {
		t.Errorf("arguments:\n%s\nwant:\n%s", got, want)
	}
	got = strings.Join(Jail{Base: "/jails"}.arguments("one-7", 7, "/bin/firecracker", "", nil), " ")
	if want := "--id one-7 --exec-file /bin/firecracker --uid 7 --gid 7 --chroot-base-dir /jails --"; got != want {
		t.Errorf("arguments:\n%s\nwant:\n%s", got, want)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("jails take root")
	}
}

func TestJailRefusals(t *testing.T) {
	needRoot(t)
	good := Jail{Jailer: "/bin/true", Base: t.TempDir(), FirstID: 70000, IDs: 2}
	if err := good.check(); err != nil {
		t.Errorf("a good jail: %v", err)
	}
	for what, change := range map[string]func(*Jail){
		"no jailer":      func(j *Jail) { j.Jailer = "/nowhere/jailer" },
		"root":           func(j *Jail) { j.FirstID = 0 },
		"no users":       func(j *Jail) { j.IDs = 0 },
		"too many users": func(j *Jail) { j.IDs = 1 << 31 },
		"version 3":      func(j *Jail) { j.CgroupVersion = 3 },
		"a group above":  func(j *Jail) { j.ParentCgroup = "../up" },
		"a group of /":   func(j *Jail) { j.ParentCgroup = "/up" },
		"half a limit":   func(j *Jail) { j.Limits = []string{"no-file"} },
		"a path":         func(j *Jail) { j.Cgroups = []string{"../memory.max=1"} },
	} {
		j := good
		change(&j)
		if err := j.check(); err == nil {
			t.Errorf("%s is not refused", what)
		}
	}
}

// TestJailUsers checks that no two machines are the same user, and that users come back.
func TestJailUsers(t *testing.T) {
	j := Jail{Base: t.TempDir(), FirstID: 70000, IDs: 3}
	var locks []*os.File
	seen := map[uint32]bool{}
	for range 3 {
		id, lock, err := j.takeID()
		if err != nil {
			t.Fatal(err)
		}
		if seen[id] || id < 70000 || id > 70002 {
			t.Errorf("user %d was given twice, or is none of ours", id)
		}
		seen[id] = true
		locks = append(locks, lock)
	}
	if id, lock, err := j.takeID(); err == nil {
		lock.Close()
		t.Errorf("a fourth machine is user %d", id)
	}
	locks[1].Close()
	id, lock, err := j.takeID()
	if err != nil || id != 70001 {
		t.Errorf("the user that came back is not given: %d, %v", id, err)
	}
	for _, l := range []*os.File{locks[0], locks[2], lock} {
		if err := errors.Join(flock.Try(l, flock.Exclusive), l.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestCellIsCleared checks that a jail which was left behind, mounts and all, is removed before its user gets another.
func TestCellIsCleared(t *testing.T) {
	needRoot(t)
	j := Jail{Jailer: "/bin/true", Base: t.TempDir(), FirstID: 70000, IDs: 1}
	c, err := newCell(j, "some machine", "/bin/firecracker")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.place(fdMemory, f); errors.Is(err, unix.EPERM) {
		t.Skipf("no mounts can be made here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	inside := c.inside(fdPath(fdMemory))
	if text, err := os.ReadFile(inside); err != nil || string(text) != "content" {
		t.Errorf("in the jail the file reads %q (%v)", text, err)
	}
	c.lock.Close() // as if we had died
	again, err := newCell(j, "some machine", "/bin/firecracker")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(inside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was left in the jail is still there: %v", err)
	}
	if err := again.release(); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "content" {
		t.Errorf("the file itself reads %q (%v)", text, err)
	}
	if _, err := os.Stat(again.outer); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the jail is still there: %v", err)
	}
}

// realJail returns a jail for the real Firecracker, whose jailer lies beside it.
func realJail(t *testing.T) (string, Jail) {
	t.Helper()
	needRoot(t)
	binary := realBinary(t)
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Skipf("%s is not linked statically: in a jail it would not find its libraries", binary)
	}
	jailer := filepath.Join(filepath.Dir(binary), "jailer")
	if _, err := os.Stat(jailer); err != nil {
		t.Skipf("no jailer beside Firecracker: %v", err)
	}
	return binary, Jail{Jailer: jailer, Base: t.TempDir(), FirstID: 70000, IDs: 8}
}

// TestContractJailed runs the contract in jails.
func TestContractJailed(t *testing.T) {
	binary, jail := realJail(t)
	vmmtest.Run(t, New(Programs{Binary: binary}, &jail), vmm.KVM, vmmtest.Long())
}

// limitProcesses has machines run in control groups of their own, and returns the folder in which the groups are; empty where there are none.
func limitProcesses(t *testing.T, jail *Jail) (groups string) {
	t.Helper()
	groups = "/sys/fs/cgroup/pids"
	if entries, err := os.ReadDir(groups); err == nil && len(entries) > 0 {
		jail.CgroupVersion, jail.Cgroups, jail.ParentCgroup = 1, []string{"pids.max=64"}, "spore-test"
	} else if controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control"); err == nil && strings.Contains(string(controllers), "pids") {
		groups = "/sys/fs/cgroup"
		jail.CgroupVersion, jail.Cgroups, jail.ParentCgroup = 2, []string{"pids.max=64"}, "spore-test"
	} else {
		t.Log("no control group of processes to be had here: that part is left out")
		return ""
	}
	t.Cleanup(func() { os.Remove(filepath.Join(groups, jail.ParentCgroup)) })
	return groups
}

// TestJailed looks at what a machine in a jail is, and that nothing of it stays.
func TestJailed(t *testing.T) {
	binary, jail := realJail(t)
	groups := limitProcesses(t, &jail)
	e := New(Programs{Binary: binary}, &jail)
	c := config(t)
	machines := []*Machine{start(t, e, c), start(t, e, config(t))}
	users := map[string]bool{}
	for _, m := range machines {
		vmmtest.WaitCount(t, m, 0)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			if name, ids, _ := strings.Cut(line, ":"); name == "Uid" {
				users[strings.Fields(ids)[0]] = true
			} else if name == "CapEff" && strings.Trim(ids, "0 \t\n") != "" {
				t.Errorf("a jailed machine has capabilities: %s", line)
			}
		}
		root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", m.PID()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/etc", m.PID())); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a jailed machine sees /etc; its root is %s", root)
		}
		if groups != "" {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", m.PID()))
			if err != nil || !strings.Contains(string(text), "/spore-test/counter-7000") {
				t.Errorf("the machine's control groups are %s (%v)", text, err)
			}
		}
	}
	if len(users) != 2 || users["0"] {
		t.Errorf("two machines run as %v", users)
	}
	state, memory, _ := vmmtest.Freeze(t, machines[0], c.Memory)
	last := vmmtest.Count(t, machines[0])
	// What was frozen in a jail thaws outside of it, and the other way round.
	outside := start(t, New(Programs{Binary: binary}, nil), thawed(t, state, memory))
	vmmtest.WaitCount(t, outside, last)
	state, memory, _ = vmmtest.Freeze(t, outside, memory)
	last = vmmtest.Count(t, outside)
	s := serveMemory(t, memory)
	served := thawed(t, state, nil)
	served.Uffd = s.path
	machines = append(machines, start(t, e, served))
	vmmtest.WaitCount(t, machines[2], last)
	for _, m := range machines {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(jail.Base, filepath.Base(binary), "*")); err != nil || len(left) > 0 {
		t.Errorf("jails are left: %v (%v)", left, err)
	}
	if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), jail.Base) {
		t.Errorf("mounts are left (%v):\n%s", err, mounts)
	}
	if groups != "" {
		if left, err := filepath.Glob(filepath.Join(groups, "spore-test", "counter-*")); err != nil || len(left) > 0 {
			t.Errorf("control groups are left: %v (%v)", left, err)
		}
	}
}
