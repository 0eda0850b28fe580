package firecracker

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sporevm/spore/internal/vmm/cage"
)

// Jail says how Firecracker's jailer confines machines. Every machine has a user, a group, a root, control groups and, unless it has a tap interface, an empty network
// namespace of its own. It takes root, a Firecracker that is linked statically, and the jailer of the same version.
//
// What a jail is made of is mounted where only the machine's process sees it, and vanishes with that process.
type Jail struct {
	Jailer        string   // path of the jailer; empty: beside Firecracker, or in PATH
	Base          string   // where jails are mounted, and who is in one is written down; the same for all of the host that hand out the same users
	FirstID       uint32   // of the users and groups that are handed out …
	IDs           uint32   // … and how many there are: so many machines can run
	CgroupVersion int      // 1 or 2; 0: 1, as the jailer has it
	Cgroups       []string // such as "memory.max=1073741824"
	ParentCgroup  string   // of those of all machines; empty: spore
	Limits        []string // such as "no-file=4096"
}

// jails is a Jail in use.
type jails struct {
	Jail
	mu      sync.Mutex
	allowed map[string]error // what Jail.Check said of a binary
}

// NoJailError says why no machine can be put into a jail, and what to do about it.
type NoJailError struct{ Why, Hint string }

func (e *NoJailError) Error() string {
	return "no jail for the machine: " + e.Why + " (" + e.Hint + ")"
}

// Check refuses what the jailer would, before anything is made. Binary is the Firecracker that is to run, whose version is given.
func (j Jail) Check(ctx context.Context, binary, version string) error {
	if err := j.check(); err != nil {
		return err
	}
	if f, err := elf.Open(binary); err == nil { // else it is for the jailer to complain
		dynamic := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
		f.Close()
		if dynamic {
			return &NoJailError{binary + " is not linked statically, and would not find its libraries", "take a release of Firecracker"}
		}
	}
	jailer, err := j.jailer(binary)
	if err != nil {
		return err
	}
	text, err := output(ctx, jailer, "--version")
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(text, "\n")
	if have := strings.TrimPrefix(strings.TrimPrefix(line, "Jailer "), "v"); have != version {
		return &NoJailError{fmt.Sprintf("%s is of version %.64q, and Firecracker of version %s", jailer, have, version), "take both from the same release"}
	}
	return j.checkCgroups()
}

// check is the part of Check that needs no Firecracker.
func (j Jail) check() error {
	if os.Geteuid() != 0 {
		return &NoJailError{"Firecracker's jailer takes root", "run spore as root"}
	}
	if err := cage.CheckRoom(); err != nil {
		return &NoJailError{err.Error(), "run spore outside of it"}
	}
	switch {
	case j.FirstID == 0 || j.IDs == 0 || uint64(j.FirstID)+uint64(j.IDs) > 1<<31:
		return fmt.Errorf("jails with %d users from %d on: choose users that nobody else is", j.IDs, j.FirstID)
	case j.CgroupVersion < 0 || j.CgroupVersion > 2:
		return fmt.Errorf("control groups of version %d: choose 1 or 2", j.CgroupVersion)
	case filepath.IsAbs(j.ParentCgroup) || j.ParentCgroup != "" && !filepath.IsLocal(j.ParentCgroup):
		return fmt.Errorf("%s is not a folder below the root of the control groups", j.ParentCgroup)
	}
	for _, c := range slices.Concat(j.Cgroups, j.Limits) {
		if name, value, ok := strings.Cut(c, "="); !ok || name == "" || value == "" || strings.Contains(name, "/") {
			return fmt.Errorf("%q is not of the form name=value", c)
		}
	}
	return nil
}

// jailer returns the path of the jailer for a Firecracker.
func (j Jail) jailer(binary string) (string, error) {
	if j.Jailer != "" {
		if _, err := os.Stat(j.Jailer); err != nil {
			return "", fmt.Errorf("looking for Firecracker's jailer: %w", err)
		}
		return j.Jailer, nil
	}
	// A release's files are named firecracker-VERSION-ARCH and jailer-VERSION-ARCH.
	beside := filepath.Join(filepath.Dir(binary), strings.Replace(filepath.Base(binary), "firecracker", "jailer", 1))
	if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && beside != binary {
		return beside, nil
	}
	if path, err := exec.LookPath("jailer"); err == nil {
		return filepath.Abs(path)
	}
	return "", &NoJailError{"there is no jailer beside " + binary + ", nor in PATH", "put the one of the same release at " + beside + ", or name it by SPORE_JAILER"}
}

// allows is Check, which asks a binary only once.
func (j *jails) allows(ctx context.Context, f facts) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err, ok := j.allowed[f.path+" "+f.version.String()]; ok {
		return err
	}
	err := j.Check(ctx, f.path, f.version.String())
	if err == nil {
		if j.allowed == nil {
			j.allowed = map[string]error{}
		}
		j.allowed[f.path+" "+f.version.String()] = nil
	}
	return err
}

// arguments returns the jailer's command line.
func (j Jail) arguments(id string, who uint32, binary, netns string, own []string) []string {
	number := strconv.FormatUint(uint64(who), 10)
	args := []string{"--id", id, "--exec-file", binary, "--uid", number, "--gid", number, "--chroot-base-dir", j.room()}
	if j.CgroupVersion != 0 {
		args = append(args, "--cgroup-version", strconv.Itoa(j.CgroupVersion))
	}
	for _, c := range j.Cgroups {
		args = append(args, "--cgroup", c)
	}
	if len(j.Cgroups) > 0 {
		args = append(args, "--parent-cgroup", j.parentCgroup())
	}
	for _, l := range j.Limits {
		args = append(args, "--resource-limit", l)
	}
	if netns != "" {
		args = append(args, "--netns", netns)
	}
	return append(append(args, "--"), own...)
}

// room is the folder that each machine sees its own jail in, and everybody else nothing.
func (j Jail) room() string { return filepath.Join(j.Base, "room") }

// users is the folder of the locks on users.
func (j Jail) users() string { return filepath.Join(j.Base, "users") }

// prepare makes the folders.
func (j *jails) prepare() error {
	for _, dir := range []string{j.room(), j.users()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the folder of jails: %w", err)
		}
	}
	return nil
}

var errOtherUser = errors.New("the user that the machine is to run as was not taken for it here")
