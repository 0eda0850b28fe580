package firecracker

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is a mounted tree of control groups.
type hierarchy struct {
	dir         string
	version     int
	controllers []string
}

// hierarchies lists what is mounted.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, fmt.Errorf("looking for control groups: %w", err)
	}
	var all []hierarchy
	for line := range bytes.Lines(mounts) {
		fields := strings.Fields(string(line))
		switch {
		case len(fields) < 4:
		case fields[2] == "cgroup":
			all = append(all, hierarchy{fields[1], 1, strings.Split(fields[3], ",")})
		case fields[2] == "cgroup2":
			have, err := os.ReadFile(filepath.Join(fields[1], "cgroup.controllers"))
			if err != nil {
				return nil, fmt.Errorf("looking for control groups: %w", err)
			}
			all = append(all, hierarchy{fields[1], 2, strings.Fields(string(have))})
		}
	}
	return all, nil
}

// CgroupVersion tells which version of control groups this host has controllers in: 2 where version 1 has none.
func CgroupVersion() int {
	all, err := hierarchies()
	if err != nil || slices.ContainsFunc(all, func(h hierarchy) bool { return h.version == 1 && slices.Contains(h.controllers, "pids") }) {
		return 1
	}
	if slices.ContainsFunc(all, func(h hierarchy) bool { return h.version == 2 }) {
		return 2
	}
	return 1
}

// checkCgroups refuses what this host has no controller for.
func (j Jail) checkCgroups() error {
	if len(j.Cgroups) == 0 {
		return nil
	}
	all, err := hierarchies()
	if err != nil {
		return err
	}
	version := max(j.CgroupVersion, 1)
	for _, c := range j.Cgroups {
		controller, _, _ := strings.Cut(c, ".")
		found := slices.ContainsFunc(all, func(h hierarchy) bool { return h.version == version && slices.Contains(h.controllers, controller) })
		if !found {
			return &NoJailError{
				fmt.Sprintf("this host has no controller %q among its control groups of version %d, which %s takes", controller, version, c),
				"mount it, or choose other limits by --jail-cgroup, or none",
			}
		}
	}
	return nil
}

// clearCgroups removes the control groups that the jailer has made for some users.
func (j Jail) clearCgroups(of func(user uint32) bool) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		parent := filepath.Join(h.dir, j.parentCgroup())
		groups, err := os.ReadDir(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("removing a jail's control groups: %w", err)
		}
		for _, g := range groups {
			user, err := strconv.ParseUint(g.Name()[strings.LastIndexByte(g.Name(), '-')+1:], 10, 32)
			if err != nil || !g.IsDir() || !of(uint32(user)) {
				continue
			}
			if err := removeGroup(filepath.Join(parent, g.Name())); err != nil {
				return fmt.Errorf("removing a jail's control groups: %w", err)
			}
		}
	}
	return nil
}

// removeGroup removes a control group. A process that has just ended may be counted for a moment.
func removeGroup(group string) error {
	for try := 0; ; try++ {
		err := os.Remove(group)
		switch {
		case err == nil || errors.Is(err, fs.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EBUSY) || try == 500:
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// parentCgroup is the group below which machines have theirs.
func (j Jail) parentCgroup() string {
	if j.ParentCgroup != "" {
		return j.ParentCgroup
	}
	return "spore"
}
