package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// hostFiles is where the doctor looks at the host; "/" but in tests.
type hostFiles string

func (h hostFiles) path(name string) string { return filepath.Join(string(h), name) }

func (h hostFiles) has(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

// read returns a file's text, or nothing.
func (h hostFiles) read(name string) string {
	text, err := os.ReadFile(h.path(name))
	if err != nil {
		return ""
	}
	return string(text)
}

var bothEngines = []string{engineQEMU, engineFirecracker}

// checkHostEngines looks at what engines take of the host.
func checkHostEngines(h hostFiles, uid int) []check {
	return []check{h.kvmModule(), h.kvmPermission(uid), h.tun(uid), h.hugePages(), h.nbdModule(), h.nbdRule()}
}

// kvmModule looks for the modules that run guests by hardware. Other modules that serve /dev/kvm run no ordinary kernel.
func (h hostFiles) kvmModule() check {
	c := check{Name: "kvm module", Status: checkOK, Engines: bothEngines}
	if runtime.GOARCH != "amd64" {
		c.Detail = "a part of the kernel on this architecture"
		return c
	}
	for _, m := range []string{"kvm_intel", "kvm_amd"} {
		if h.has("/sys/module/" + m) {
			c.Detail = m + " is loaded"
			return c
		}
	}
	c.Status, c.stops = checkWarn, []string{engineFirecracker}
	flags := h.read("/proc/cpuinfo")
	switch {
	case cpuHas(flags, "vmx"):
		c.Detail, c.Fix = "kvm_intel is not loaded", "sudo modprobe kvm_intel"
	case cpuHas(flags, "svm"):
		c.Detail, c.Fix = "kvm_amd is not loaded", "sudo modprobe kvm_amd"
	default:
		c.Detail, c.Fix = "the CPU offers no virtualization", "turn virtualization on in the firmware (in a VM: nested virtualization, on the VM's host)"
	}
	if h.has("/sys/module/kvm_pvm") {
		c.Detail += "; kvm_pvm serves /dev/kvm, which runs no Linux guest"
	}
	return c
}

func cpuHas(cpuinfo, flag string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, flags, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "flags" {
			return slices.Contains(strings.Fields(flags), flag)
		}
	}
	return false
}

// kvmPermission looks whether a VMM may open KVM. As root a VMM is to be an ordinary user all the same.
func (h hostFiles) kvmPermission(uid int) check {
	const rule = `echo 'KERNEL=="kvm", GROUP="kvm", MODE="0660"' | sudo tee /etc/udev/rules.d/65-kvm.rules && sudo udevadm control --reload && sudo udevadm trigger /dev/kvm`
	c := check{Name: "kvm permission", Status: checkWarn, Engines: bothEngines}
	var st unix.Stat_t
	err := unix.Stat(h.path("/dev/kvm"), &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Detail, c.Fix, c.stops = "there is no /dev/kvm", first(h.kvmModule().Fix, "sudo modprobe kvm"), []string{engineFirecracker}
	case err != nil:
		c.Detail, c.stops = err.Error(), []string{engineFirecracker}
	case st.Mode&0o006 == 0o006, uid == 0 && st.Gid != 0 && st.Mode&0o060 == 0o060:
		c.Status, c.Detail = checkOK, "a VMM that is an ordinary user may open /dev/kvm"
	case uid == 0:
		c.Detail, c.Fix = "only root may open /dev/kvm: Firecracker would run as root, and QEMU would do without", rule
	case unix.Access(h.path("/dev/kvm"), unix.R_OK|unix.W_OK) == nil:
		c.Status, c.Detail = checkOK, "you may open /dev/kvm"
	case st.Mode&0o060 == 0o060 && st.Gid != 0:
		c.Detail, c.Fix = "you may not open /dev/kvm", "sudo usermod -aG kvm $USER, then log in again"
		c.stops = []string{engineFirecracker}
	default:
		c.Detail, c.Fix, c.stops = "only root may open /dev/kvm", rule, []string{engineFirecracker}
	}
	return c
}

// checkUserfault tells whether a VMM may have its memory served page by page, as forks of a template that is far away have it.
func checkUserfault(err error) check {
	c := check{Name: "userfaultfd", Status: checkOK, Engines: []string{engineFirecracker}, Detail: "a VMM may have its memory served page by page"}
	var no *firecracker.UnservedError
	switch {
	case errors.As(err, &no):
		c.Status, c.Detail, c.Fix = checkWarn, "memory that is served page by page is not to be had: "+no.Why, no.Fix
	case err != nil:
		c.Status, c.Detail = checkWarn, err.Error()
	}
	return c
}

// ordinaryVMM tells whether a Firecracker without a jail runs as an ordinary user, as it does unless only root may open KVM, and returns what /dev/kvm is.
func (h hostFiles) ordinaryVMM(uid int) (ordinary bool, kvm unix.Stat_t) {
	there := unix.Stat(h.path("/dev/kvm"), &kvm) == nil
	return uid != 0 || there && (kvm.Mode&0o006 == 0o006 || kvm.Gid != 0 && kvm.Mode&0o060 == 0o060), kvm
}

// tun looks whether a VMM that is an ordinary user may open a tap interface by its name, as Firecracker does. QEMU is handed it.
func (h hostFiles) tun(uid int) check {
	c := check{Name: "tun device", Status: checkOK, Engines: []string{engineFirecracker}, Detail: "a VMM may attach to a tap interface by its name"}
	var st unix.Stat_t
	ordinary, _ := h.ordinaryVMM(uid)
	err := unix.Stat(h.path("/dev/net/tun"), &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Status, c.Detail, c.Fix = checkWarn, "there is no /dev/net/tun: --net tap is not to be had", "sudo modprobe tun"
	case err != nil:
		c.Status, c.Detail, c.Fix = checkWarn, err.Error(), "sudo modprobe tun"
	case ordinary && st.Mode&0o006 != 0o006:
		c.Status, c.Detail = checkWarn, "only some may open /dev/net/tun: Firecracker, which is an ordinary user here, can't have --net tap"
		c.Fix = `echo 'KERNEL=="tun", MODE="0666"' | sudo tee /etc/udev/rules.d/65-tun.rules && sudo udevadm control --reload && sudo udevadm trigger /dev/net/tun`
	}
	return c
}

var hugePagesTotal = regexp.MustCompile(`(?m)^HugePages_Total:\s+(\d+)$`)

// hugePages tells of them; no machine needs any.
func (h hostFiles) hugePages() check {
	c := check{Name: "huge pages", Status: checkOK}
	match := hugePagesTotal.FindStringSubmatch(h.read("/proc/meminfo"))
	switch {
	case match == nil:
		c.Detail = "this kernel has none; machines use ordinary pages"
	case match[1] == "0":
		c.Detail, c.Fix = "none are reserved; machines use ordinary pages", "to reserve 1 GiB for other tools that want them: sudo sysctl -w vm.nr_hugepages=512"
	default:
		c.Detail = match[1] + " are reserved; machines use ordinary pages"
	}
	return c
}

// nbdModule tells of the kernel's own NBD client. No machine needs it; spore mount takes it where it is.
func (h hostFiles) nbdModule() check {
	c := check{Name: "nbd module", Status: checkOK, Engines: []string{engineFirecracker}}
	if !h.has("/sys/module/nbd") && !h.has("/dev/nbd0") {
		c.Detail, c.Fix = "not loaded; spore mount works by FUSE and a loop device, and machines have their disks by FUSE, in jails too",
			"to mount by NBD: sudo modprobe nbd (other programs want nbds_max=4096)"
		return c
	}
	c.Detail = "loaded: spore mount works by it"
	if n := strings.TrimSpace(h.read("/sys/module/nbd/parameters/nbds_max")); n != "" {
		c.Detail += ", for " + n + " devices"
	}
	return c
}

// nbdRule looks for the rule that keeps udev from watching NBD devices: it reads each one again whenever somebody who wrote to it closes it.
func (h hostFiles) nbdRule() check {
	c := check{Name: "nbd udev rule", Status: checkOK, Engines: []string{engineFirecracker}}
	known := false
	for _, dir := range []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"} {
		files, err := filepath.Glob(h.path(dir + "/*.rules"))
		if err != nil || len(files) == 0 {
			continue
		}
		known = true
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(text)) {
				if !strings.HasPrefix(strings.TrimSpace(line), "#") && strings.Contains(line, `"nbd`) && strings.Contains(line, "nowatch") {
					c.Detail = "in " + filepath.Join(dir, filepath.Base(f))
					return c
				}
			}
		}
	}
	if !known {
		c.Detail = "there is no udev here that could watch devices"
		return c
	}
	c.Status, c.Detail = checkWarn, "udev watches NBD devices, and reads them again whenever one is closed"
	c.Fix = `echo 'ACTION=="add|change", KERNEL=="nbd*", OPTIONS:="nowatch"' | sudo tee /etc/udev/rules.d/97-nbd-device.rules && sudo udevadm control --reload && sudo udevadm trigger`
	return c
}

// checkFirecracker looks for the binary and its version.
func checkFirecracker(ctx context.Context, p firecracker.Programs, arch string) check {
	c := check{Name: engineFirecracker, Status: checkWarn, Engines: []string{engineFirecracker}, stops: []string{engineFirecracker}}
	if arch != runtime.GOARCH {
		c.Detail = fmt.Sprintf("runs guests of the host's architecture, %s, and not %s", runtime.GOARCH, arch)
		return c
	}
	found, err := firecracker.New(p, nil).Installed(ctx, arch)
	var missing *firecracker.NotFoundError
	var old *firecracker.UnsupportedError
	switch {
	case errors.As(err, &missing):
		c.Detail = "not installed"
		c.Fix = fmt.Sprintf("take a release of Firecracker for %s, and: install -D firecracker-v*-* %s/VERSION/%s/firecracker", arch, p.VersionsDir, arch)
	case errors.As(err, &old):
		c.Detail = err.Error() + " (" + found.Path + ")"
		c.Fix = fmt.Sprintf("put version %s or later at %s/VERSION/%s/firecracker", old.Since, p.VersionsDir, arch)
	case err != nil:
		c.Detail, c.Fix = err.Error(), "check the file that SPORE_FIRECRACKER or FIRECRACKER_VERSIONS_DIR names"
	default:
		c.Status, c.stops, c.Detail = checkOK, nil, fmt.Sprintf("version %s at %s", found.Version, found.Path)
		if found.Newer {
			c.Status, c.Detail = checkWarn, c.Detail+", newer than any that is known here"
			c.Fix = "if its machines fail, name an older one by SPORE_FIRECRACKER"
		}
	}
	return c
}

// engineState sums up for one engine.
type engineState struct {
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing"` // names of checks
}

// engineStates sums checks up. What fails stops both; QEMU needs no KVM, nor Firecracker an NBD module.
func engineStates(checks []check) map[string]engineState {
	out := map[string]engineState{}
	for _, engine := range bothEngines {
		s := engineState{Missing: []string{}}
		for _, c := range checks {
			if slices.Contains(c.stops, engine) || c.Status == checkFail && (c.Name != engineQEMU || engine == engineQEMU) {
				s.Missing = append(s.Missing, c.Name)
			}
		}
		s.Ready = len(s.Missing) == 0
		out[engine] = s
	}
	return out
}
