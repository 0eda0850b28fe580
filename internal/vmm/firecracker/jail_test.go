package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/cage"
	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

func TestJailArguments(t *testing.T) {
	j := Jail{Base: "/jails", CgroupVersion: 2, Cgroups: []string{"memory.max=1", "cpu.weight=5"}, ParentCgroup: "spore/machines", Limits: []string{"no-file=99"}}
	got := strings.Join(j.arguments("one-7", 7, "/bin/firecracker", "/run/netns/a", []string{"--api-sock", "x"}), " ")
	want := "--id one-7 --exec-file /bin/firecracker --uid 7 --gid 7 --chroot-base-dir /jails/room --cgroup-version 2 --cgroup memory.max=1 --cgroup cpu.weight=5 " +
		"--parent-cgroup spore/machines --resource-limit no-file=99 --netns /run/netns/a -- --api-sock x"
	if got != want {
		t.Errorf("arguments:\n%s\nwant:\n%s", got, want)
	}
	got = strings.Join(Jail{Base: "/jails"}.arguments("one-7", 7, "/bin/firecracker", "", nil), " ")
	if want := "--id one-7 --exec-file /bin/firecracker --uid 7 --gid 7 --chroot-base-dir /jails/room --"; got != want {
		t.Errorf("arguments:\n%s\nwant:\n%s", got, want)
	}
}

func needJail(t *testing.T) {
	t.Helper()
	if err := cage.CheckRoom(); err != nil {
		t.Skipf("no jails here: %v", err)
	}
}

func TestJailRefusals(t *testing.T) {
	needJail(t)
	good := Jail{Jailer: "/bin/true", Base: t.TempDir(), FirstID: 70000, IDs: 2}
	if err := good.check(); err != nil {
		t.Errorf("a good jail: %v", err)
	}
	for what, change := range map[string]func(*Jail){
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

// TestJailCheck checks that what a jail lacks is named.
func TestJailCheck(t *testing.T) {
	needJail(t)
	dir := t.TempDir()
	program := func(name, says string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho "+says+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	binary := program("firecracker-v1.16.1-x86_64", "")
	j := Jail{Base: t.TempDir(), FirstID: 70000, IDs: 2}
	t.Setenv("PATH", "/nowhere")
	refused := func(want string) {
		t.Helper()
		var no *NoJailError
		if err := j.Check(t.Context(), binary, "1.16.1"); !errors.As(err, &no) || !strings.Contains(err.Error(), want) {
			t.Errorf("refused for %v, want %q", err, want)
		}
	}
	refused("put the one of the same release at " + filepath.Join(dir, "jailer-v1.16.1-x86_64"))
	program("jailer-v1.16.1-x86_64", "Jailer v1.15.0")
	refused("of version \"1.15.0\", and Firecracker of version 1.16.1")
	program("jailer-v1.16.1-x86_64", "Jailer v1.16.1")
	if err := j.Check(t.Context(), binary, "1.16.1"); err != nil {
		t.Error(err)
	}
	j.Cgroups = []string{"spores.max=1"}
	refused(`no controller "spores"`)
	j.Cgroups, binary = nil, "/bin/sh"
	refused("not linked statically")
	j.Jailer = "/nowhere/jailer"
	if _, err := j.jailer(binary); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a jailer that is not there: %v", err)
	}
}

// TestJailUsers checks that no two machines are the same user, and that users come back.
func TestJailUsers(t *testing.T) {
	needJail(t)
	j := &jails{Jail: Jail{Base: t.TempDir(), FirstID: 70000, IDs: 3}}
	var users []vmm.User
	seen := map[int]bool{}
	for range 3 {
		u, err := j.newUser()
		if err != nil {
			t.Fatal(err)
		}
		if seen[u.ID()] || u.ID() < 70000 || u.ID() > 70002 {
			t.Errorf("user %d was given twice, or is none of ours", u.ID())
		}
		seen[u.ID()] = true
		users = append(users, u)
	}
	if u, err := j.newUser(); err == nil {
		u.Close()
		t.Errorf("a fourth machine is user %d", u.ID())
	}
	for range 2 { // once is enough, and more does not give back another's
		if err := users[1].Close(); err != nil {
			t.Error(err)
		}
	}
	u, err := j.newUser()
	if err != nil || u.ID() != 70001 {
		t.Fatalf("the user that came back is not given: %d, %v", u.ID(), err)
	}
	if err := users[1].Close(); err != nil {
		t.Error(err)
	}
	if again, err := j.newUser(); err == nil {
		t.Errorf("user %d was given twice", again.ID())
	}
	for _, u := range []vmm.User{users[0], users[2], u} {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
}

// jailed runs a test in a jail for tests and, where there are a real Firecracker and its jailer beside it, in a real one.
func jailed(t *testing.T, test func(t *testing.T, binary string, jail Jail)) {
	needJail(t)
	needX86(t)
	t.Run("test", func(t *testing.T) {
		binary := fctest.InstallStatic(t, "1.16.1")
		test(t, binary, Jail{Base: t.TempDir(), FirstID: 70000, IDs: 8})
	})
	t.Run("real", func(t *testing.T) {
		binary, jail := realJail(t)
		test(t, binary, jail)
	})
}

// realJail returns a jail for the real Firecracker, whose jailer lies beside it.
func realJail(t *testing.T) (string, Jail) {
	t.Helper()
	needJail(t)
	binary := realBinary(t)
	jail := Jail{Base: t.TempDir(), FirstID: 71000, IDs: 8}
	if found, err := New(Programs{Binary: binary}, nil).Installed(t.Context(), "amd64"); err != nil {
		t.Fatal(err)
	} else if err := jail.Check(t.Context(), binary, found.Version); err != nil {
		t.Skip(err)
	}
	return binary, jail
}

// TestContractJailed runs the contract in jails.
func TestContractJailed(t *testing.T) {
	jailed(t, func(t *testing.T, binary string, jail Jail) {
		vmmtest.Run(t, New(Programs{Binary: binary}, &jail), vmm.KVM, vmmtest.Long())
	})
}

// withGroups has a jail's machines in control groups, and returns the folder that those are in; empty: none can be had.
func withGroups(t *testing.T, jail *Jail) string {
	t.Helper()
	jail.CgroupVersion, jail.Cgroups, jail.ParentCgroup = CgroupVersion(), []string{"pids.max=64"}, fmt.Sprintf("spore-test-%d", jail.FirstID)
	if err := jail.checkCgroups(); err != nil {
		t.Logf("without control groups: %v", err)
		jail.Cgroups = nil
		return ""
	}
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if h.version == jail.CgroupVersion && slices.Contains(h.controllers, "pids") {
			parent := filepath.Join(h.dir, jail.ParentCgroup)
			t.Cleanup(func() { os.Remove(parent) })
			return parent
		}
	}
	return ""
}

// noJail checks that nothing of jails is to be seen on this host.
func noJail(t *testing.T, jail Jail) {
	t.Helper()
	if left, err := os.ReadDir(jail.room()); err != nil || len(left) > 0 {
		t.Errorf("jails are seen by all: %v (%v)", left, err)
	}
	if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), jail.Base) {
		t.Errorf("mounts are seen by all (%v):\n%s", err, mounts)
	}
}

// TestJailed looks at what a machine in a jail is, and that nothing of it stays.
func TestJailed(t *testing.T) { jailed(t, testJailed) }

func testJailed(t *testing.T, binary string, jail Jail) {
	groups := withGroups(t, &jail)
	e := New(Programs{Binary: binary}, &jail)
	c := config(t)
	own := ownNetwork(t, os.Getpid())
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
		if ownNetwork(t, m.PID()) == own {
			t.Error("a jailed machine is in the host's network")
		}
		if groups != "" {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", m.PID()))
			if err != nil || !strings.Contains(string(text), "/"+jail.ParentCgroup+"/counter-7") {
				t.Errorf("the machine's control groups are %s (%v)", text, err)
			}
		}
	}
	noJail(t, jail)
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
	noJail(t, jail)
	noGroups(t, groups)
}

func noGroups(t *testing.T, groups string) {
	t.Helper()
	if groups == "" {
		return
	}
	if left, err := filepath.Glob(filepath.Join(groups, "counter-*")); err != nil || len(left) > 0 {
		t.Errorf("control groups are left: %v (%v)", left, err)
	}
}

// ownNetwork is the network namespace of a process.
func ownNetwork(t *testing.T, pid int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// ownerEnv makes the test binary the owner of a jailed machine, which it is told as JSON there.
const ownerEnv = "SPORE_FIRECRACKER_TEST_OWNER"

type ownerTask struct {
	Binary string
	Jail   Jail
	Config vmm.Config
}

// owner starts a machine, says its process, and waits to be killed.
func owner(text string) error {
	var task ownerTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		return err
	}
	m, err := New(Programs{Binary: task.Binary}, &task.Jail).Start(context.Background(), task.Config)
	if err != nil {
		return err
	}
	fmt.Println(m.PID())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// TestJailOwnerDies kills who has started a jailed machine: the machine dies with it, though it is another user by then, and what is left of the jail is an empty control group,
// which the next owner removes.
func TestJailOwnerDies(t *testing.T) {
	jailed(t, func(t *testing.T, binary string, jail Jail) {
		groups := withGroups(t, &jail)
		c := config(t)
		c.Memory.Close()
		c.Memory = nil // it boots
		text, err := json.Marshal(ownerTask{binary, jail, c})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env, cmd.Stderr = append(os.Environ(), ownerEnv+"="+string(text)), t.Output()
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			t.Fatal(errors.Join(err, cmd.Wait()))
		}
		machine, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(machine)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		poll := []unix.PollFd{{Fd: int32(machine), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 60_000); n != 1 || err != nil {
			unix.PidfdSendSignal(machine, unix.SIGKILL, nil, 0)
			t.Fatalf("the machine outlives its owner (%v)", err)
		}
		noJail(t, jail)
		if u, err := (&jails{Jail: jail}).newUser(); err != nil || u.ID() != int(jail.FirstID) {
			t.Errorf("the user is not to be had again: %v", err)
		} else if err := u.Close(); err != nil {
			t.Error(err)
		}
		noGroups(t, groups)
	})
}

// TestJailSweepsProcesses checks that a process is ended whose user nobody has taken: its owner may die while it starts it.
func TestJailSweepsProcesses(t *testing.T) {
	needJail(t)
	j := &jails{Jail: Jail{Base: t.TempDir(), FirstID: 72000, IDs: 2}}
	taken, err := j.newUser()
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := j.newUser()
	if err == nil {
		err = free.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Dir(fctest.InstallStatic(t, "1.16.1"))
	start := func(user vmm.User, root string, command ...string) *exec.Cmd {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: uint32(user.ID()), Gid: uint32(user.ID())}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	if err := os.Chmod(root, 0o777); err != nil {
		t.Fatal(err)
	}
	left, kept := start(free, root, "/firecracker", "--api-sock", "/left"), start(taken, root, "/firecracker", "--api-sock", "/kept")
	other := start(free, "", "/bin/sleep", "600") // is no machine
	for _, cmd := range []*exec.Cmd{kept, other} {
		defer cmd.Wait()
		defer cmd.Process.Kill()
	}
	if err := j.Sweep(); err != nil {
		t.Fatal(err)
	}
	if err := left.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("a process that was left ends with %v", err)
	}
	for what, cmd := range map[string]*exec.Cmd{"whose user is taken": kept, "that is in no jail": other} {
		var status unix.WaitStatus
		if pid, err := unix.Wait4(cmd.Process.Pid, &status, unix.WNOHANG, nil); pid != 0 || err != nil {
			t.Errorf("a process %s has ended: %v (%v)", what, status, err)
		}
	}
}
