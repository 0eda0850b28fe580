package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// The users that jailed machines run as, unless SPORE_JAIL_USERS says otherwise: systemd's table of users gives these to nobody.
const (
	jailFirst = 0x70000000
	jailUsers = 1 << 16
)

// jailLimit is what each jailed machine is limited to unless a flag says otherwise. Firecracker has a thread for each virtual CPU, of at most 32, and a few more.
const jailLimit = "pids.max=128"

// jailFlags say how machines are confined.
type jailFlags struct {
	on      bool
	cgroups []string
}

// jailFlags declares the choice for the commands that start machines.
func (a *app) jailFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&a.jail.on, "jail", false, "run machines in Firecracker's jailer: a user, a root, control groups and a network namespace for each (needs root; machines on qemu are refused)")
	flags.StringArrayVar(&a.jail.cgroups, "jail-cgroup", nil, "with --jail: `FILE=VALUE` of a machine's control groups, such as memory.max=1G, or none (default "+jailLimit+"); may be repeated")
}

// jailed returns the jail that was asked for, or nil.
func (a *app) jailed() (*firecracker.Jail, error) {
	if !a.jail.on {
		if len(a.jail.cgroups) > 0 {
			return nil, usageErrorf("--jail-cgroup goes with --jail")
		}
		return nil, nil
	}
	j, err := a.jailPlace()
	if err != nil {
		return nil, err
	}
	switch list := a.jail.cgroups; {
	case len(list) == 0:
		j.Cgroups = []string{jailLimit}
	case len(list) > 1 || list[0] != "none":
		for _, c := range list {
			if name, value, ok := strings.Cut(c, "="); !ok || name == "" || value == "" || strings.Contains(name, "/") {
				return nil, usageErrorf("--jail-cgroup %q is neither FILE=VALUE nor none", c)
			}
		}
		j.Cgroups = list
	}
	return &j, nil
}

// jailPlace returns where jails are on this host and who is in them. It does not depend on other folders: all that hand out the same users must agree on it.
func (a *app) jailPlace() (firecracker.Jail, error) {
	j := firecracker.Jail{
		Jailer: a.Getenv("SPORE_JAILER"), Base: first(a.Getenv("SPORE_JAIL_DIR"), "/run/spore-jails"), FirstID: jailFirst, IDs: jailUsers,
		CgroupVersion: firecracker.CgroupVersion(), ParentCgroup: "spore",
	}
	if text := a.Getenv("SPORE_JAIL_USERS"); text != "" {
		from, to, ok := strings.Cut(text, "-")
		first, err := strconv.ParseUint(from, 10, 31)
		last, err2 := strconv.ParseUint(to, 10, 31)
		if !ok || err != nil || err2 != nil || first == 0 || last < first {
			return j, usageErrorf("SPORE_JAIL_USERS is %q: choose the first and the last, such as %d-%d", text, jailFirst, jailFirst+jailUsers-1)
		}
		j.FirstID, j.IDs = uint32(first), uint32(last-first+1)
	}
	return j, nil
}

// sweepJails removes what machines have left whose owners died.
func (a *app) sweepJails() error {
	if os.Geteuid() != 0 {
		return nil
	}
	j, err := a.jailPlace()
	if err != nil {
		return err
	}
	return j.Sweep()
}

// unjailed is an engine that can't keep what --jail promises, and runs nothing.
type unjailed struct{ vmm.Engine }

func (u unjailed) refuse() error {
	return fmt.Errorf("--jail is for machines on %s, and this one is for %s: make it with --engine %s, or leave --jail out", engineFirecracker, u.Name(), engineFirecracker)
}

// Describe implements vmm.Engine.
func (u unjailed) Describe(context.Context, string, vmm.Accel) (vmm.Description, error) {
	return vmm.Description{}, u.refuse()
}

// Start implements vmm.Engine.
func (u unjailed) Start(_ context.Context, c vmm.Config) (vmm.Machine, error) {
	if c.Disk != nil {
		c.Disk.Close()
	}
	return nil, u.refuse()
}

// onlyEngine is the one engine that may be used; empty: any.
func (a *app) onlyEngine() string {
	if a.jail.on {
		return engineFirecracker
	}
	return ""
}

// checkJail looks at what --jail takes.
func (a *app) checkJail(ctx context.Context, p firecracker.Programs, arch string) check {
	c := check{Name: "jail", Status: checkWarn, Engines: []string{engineFirecracker}}
	j, err := a.jailPlace()
	if err == nil {
		j.Cgroups = []string{jailLimit}
		found, missing := firecracker.New(p, nil).Installed(ctx, arch)
		if missing != nil {
			c.Detail = "--jail is not to be had: there is no Firecracker"
			return c
		}
		err = j.Check(ctx, found.Path, found.Version)
	}
	var no *firecracker.NoJailError
	switch {
	case errors.As(err, &no):
		c.Detail, c.Fix = "--jail is not to be had: "+no.Why, no.Hint
	case err != nil:
		c.Detail = "--jail is not to be had: " + err.Error()
	default:
		c.Status = checkOK
		c.Detail = fmt.Sprintf("--jail is to be had: users %d to %d, control groups of version %d", j.FirstID, j.FirstID+j.IDs-1, max(j.CgroupVersion, 1))
	}
	return c
}
