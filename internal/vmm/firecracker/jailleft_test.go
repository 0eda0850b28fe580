package firecracker

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// jailOwnerEnv names the folder of jails of a process that has a machine in one until it is killed.
const jailOwnerEnv = "SPORE_FIRECRACKER_TEST_JAILS"

// TestJailOwnerKilled kills a process that has a jailed machine. The machine outlives it; whoever is given the machine's user next ends it, and removes what it had.
func TestJailOwnerKilled(t *testing.T) {
	binary, jail := realJail(t)
	jail.IDs = 1
	base := os.Getenv(jailOwnerEnv)
	if base != "" {
		jail.Base = base
	}
	groups := limitProcesses(t, &jail)
	e := New(Programs{Binary: binary}, &jail)
	if base != "" {
		c := config(t)
		c.Name = "another name"
		m := start(t, e, c)
		vmmtest.WaitCount(t, m, 0)
		fmt.Println("\nowned", m.PID())
		select {}
	}
	owner := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	owner.Env = append(os.Environ(), jailOwnerEnv+"="+jail.Base, "TMPDIR="+t.TempDir())
	owner.Stderr = os.Stderr
	out, err := owner.StdoutPipe()
	if err == nil {
		err = owner.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Wait()
	defer owner.Process.Kill()
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0; {
		if !lines.Scan() {
			t.Fatal("the owner has ended")
		}
		fmt.Sscanf(lines.Text(), "owned %d", &pid)
	}
	machine, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(machine)
	defer unix.PidfdSendSignal(machine, unix.SIGKILL, nil, 0)
	if _, err := e.Start(t.Context(), config(t)); err == nil || !strings.Contains(err.Error(), "users for jails are taken") {
		t.Errorf("a second machine of one user: %v", err)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	owner.Wait() // to its last descriptor
	m := start(t, e, config(t))
	vmmtest.WaitCount(t, m, 0)
	ended := []unix.PollFd{{Fd: int32(machine), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, 0); n != 1 {
		t.Errorf("the machine whose owner died lives on (%v)", err)
	}
	jails, err := os.ReadDir(filepath.Join(jail.Base, filepath.Base(binary)))
	if err != nil || len(jails) != 1 {
		t.Errorf("jails are %v (%v)", jails, err)
	}
	if groups != "" {
		if left, err := filepath.Glob(filepath.Join(groups, "spore-test", "another-name-*")); err != nil || len(left) > 0 {
			t.Errorf("control groups are left: %v (%v)", left, err)
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), jail.Base) {
		t.Errorf("mounts are left (%v):\n%s", err, mounts)
	}
}

// TestOnlyTheJailsOwn has processes beside a jail that nobody owns, each like its machine but for one thing: they live on.
func TestOnlyTheJailsOwn(t *testing.T) {
	needRoot(t)
	j := Jail{Jailer: "/bin/true", Base: t.TempDir(), FirstID: 70000, IDs: 1}
	dead, err := newCell(j, "some machine", "/bin/firecracker")
	if err != nil {
		t.Fatal(err)
	}
	sleeper := func(uid uint32, id string) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", "read line; true", "firecracker", "--id", id, "--api-sock")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		return cmd
	}
	machine := sleeper(70000, dead.id)
	others := []*exec.Cmd{sleeper(70001, dead.id), sleeper(70000, dead.id+"1"), sleeper(70000, "x"+dead.id)}
	dead.lock.Close() // as if we had died
	again, err := newCell(j, "another machine", "/bin/firecracker")
	if err != nil {
		t.Fatal(err)
	}
	if err := machine.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the machine has ended with %v", err)
	}
	for i, other := range others {
		if err := other.Process.Signal(unix.Signal(0)); err != nil {
			t.Errorf("process %d was killed: %v", i, err)
		}
	}
	if _, err := os.Stat(dead.outer); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the jail is still there: %v", err)
	}
	if err := again.release(); err != nil {
		t.Error(err)
	}
}
