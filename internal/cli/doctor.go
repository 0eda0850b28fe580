package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/agentbin"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check what this host has of what spore needs",
		Long: `Checks the programs, the kernel, the accelerator and the room that spore needs, and says how to mend what is missing: for QEMU, which runs machines unless
something else is asked for, and for Firecracker.
The exit code is 1 if something is missing without which no machine can run.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context()) },
	}
}

// The outcomes of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn" // something is slower or not to be had
	checkFail = "fail" // no machine can run
)

// check is one finding as --json shows it.
type check struct {
	Name    string   `json:"name"`
	Status  string   `json:"status"`
	Detail  string   `json:"detail"`
	Fix     string   `json:"fix,omitempty"`
	Engines []string `json:"engines,omitempty"` // those that want it; none: all
	stops   []string // engines that can't run any machine because of it
}

func (a *app) doctor(ctx context.Context) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	arch, err := a.arch()
	if err != nil {
		return err
	}
	checks := []check{checkHost()}
	checks = append(checks, checkEngine(ctx, qemu.New(p.Cache), arch)...)
	programs, err := a.firecrackers()
	if err != nil {
		return err
	}
	checks = append(checks, checkFirecracker(ctx, programs, arch), a.checkJail(ctx, programs, arch))
	checks = append(checks, checkUserfault(firecracker.New(programs, nil).Needs().MayServe()))
	checks = append(checks, checkHostEngines("/", os.Geteuid())...)
	checks = append(checks,
		checkKernel(p.Kernels, arch), checkAgent(arch),
		checkMmdebstrap(), checkPageMap(), checkFUSE(), a.checkTap(),
	)
	for _, dir := range []struct{ name, path string }{{"store", p.Store}, {"cache", p.Cache}, {runFolder, p.Run}} {
		checks = append(checks, checkFolder(dir.name, dir.path))
	}
	failed := 0
	for _, c := range checks {
		if c.Status == checkFail {
			failed++
		}
	}
	if a.json {
		err = a.printJSON(map[string]any{"ok": failed == 0, "checks": checks, "engines": engineStates(checks), "paths": p})
	} else {
		err = a.doctorText(checks)
	}
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d of %d checks failed: no machine can run until they are mended", failed, len(checks))
	}
	return err
}

func (a *app) doctorText(checks []check) error {
	states := engineStates(checks)
	for _, name := range bothEngines {
		c := check{Status: checkOK, Name: "machines on " + name, Detail: "can run"}
		if s := states[name]; !s.Ready {
			c.Status, c.Detail = checkWarn, "can't run: see "+strings.Join(s.Missing, ", ")
		}
		checks = append(checks, c)
	}
	rows := make([][]string, 0, 2*len(checks))
	for _, c := range checks {
		rows = append(rows, []string{c.Status, c.Name, c.Detail})
		if c.Fix != "" {
			rows = append(rows, []string{"", "", "→ " + c.Fix})
		}
	}
	return table(a.Out, nil, rows)
}

func checkHost() check {
	var uts unix.Utsname
	release := "unknown"
	if unix.Uname(&uts) == nil {
		release = unix.ByteSliceToString(uts.Release[:])
	}
	return check{Name: "host", Status: checkOK, Detail: fmt.Sprintf("linux/%s, kernel %s, %d CPUs", runtime.GOARCH, release, runtime.NumCPU())}
}

func checkEngine(ctx context.Context, e *qemu.Engine, arch string) []check {
	d, err := e.Describe(ctx, arch, vmm.TCG)
	if err != nil {
		return []check{{Name: "qemu", Status: checkFail, Detail: err.Error(), Fix: "apt-get install qemu-system-x86 (guests on amd64) or qemu-system-arm (arm64)"}}
	}
	out := []check{{Name: "qemu", Status: checkOK, Detail: fmt.Sprintf("version %s, machine %s", d.Version, d.MachineType)}}
	if kvm := e.KVM(ctx, arch); kvm.Usable {
		out = append(out, check{Name: "kvm", Status: checkOK, Detail: "a probe guest ran"})
	} else {
		out = append(out, check{Name: "kvm", Status: checkWarn, Detail: "guests run under software emulation: " + kvm.Reason, Fix: kvm.Hint})
	}
	return out
}

func checkKernel(dir, arch string) check {
	k, err := guest.FindKernel(dir, "", arch)
	if err != nil {
		return check{Name: "kernel", Status: checkFail, Detail: err.Error(), Fix: "scripts/kernel (or `make kernel`) fetches Debian's cloud kernel"}
	}
	return check{Name: "kernel", Status: checkOK, Detail: k.Version + " at " + k.Path}
}

func checkAgent(arch string) check {
	agent, err := agentbin.Agent(arch)
	if err != nil {
		return check{Name: "guest agent", Status: checkFail, Detail: err.Error(), Fix: "build spore with `make`, which builds the agent first"}
	}
	return check{Name: "guest agent", Status: checkOK, Detail: fmt.Sprintf("embedded, %s", formatBytes(int64(len(agent))))}
}

func checkMmdebstrap() check {
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return check{Name: "mmdebstrap", Status: checkWarn, Detail: "not installed: apt: images can't be made, others can", Fix: "apt-get install mmdebstrap"}
	}
	if _, err := exec.LookPath("newuidmap"); err != nil && os.Geteuid() != 0 {
		return check{Name: "mmdebstrap", Status: checkWarn, Detail: "apt: images need root, or newuidmap, which is not installed", Fix: "apt-get install uidmap"}
	}
	return check{Name: "mmdebstrap", Status: checkOK, Detail: path}
}

// checkPageMap asks the kernel whether it lists written pages itself (PAGEMAP_SCAN, Linux 6.7). Without it the page map is read entry by entry.
func checkPageMap() check {
	const pagemapScan = 0xc0606610 // linux/fs.h: _IOWR('f', 16, struct pm_scan_arg)
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return check{Name: "page map", Status: checkFail, Detail: err.Error(), Fix: "mount /proc: the pages that a guest wrote are found in /proc/PID/pagemap"}
	}
	defer f.Close()
	// A kernel that knows the request complains about the missing argument, another one about the request.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, 0); errno != unix.EFAULT {
		return check{Name: "page map", Status: checkOK, Detail: "read entry by entry: kernels from 6.7 on scan it faster"}
	}
	return check{Name: "page map", Status: checkOK, Detail: "scanned by the kernel"}
}

func checkFUSE() check {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return check{Name: "fuse", Status: checkWarn, Engines: []string{engineFirecracker}, Detail: "not to be had, and not needed by machines on QEMU: " + err.Error(), Fix: fuseFix(err), stops: []string{engineFirecracker}}
	}
	f.Close()
	if os.Geteuid() != 0 {
		return check{Name: "fuse", Status: checkWarn, Engines: []string{engineFirecracker}, Detail: "/dev/fuse opens, but showing a disk to Firecracker takes root; machines on QEMU do not need it",
			stops: []string{engineFirecracker},
			Fix:   "run spore as root for machines on Firecracker"}
	}
	return check{Name: "fuse", Status: checkOK, Engines: []string{engineFirecracker}, Detail: "/dev/fuse opens; machines on QEMU do not need it"}
}

func fuseFix(err error) string {
	if errors.Is(err, os.ErrNotExist) {
		return "sudo modprobe fuse"
	}
	return "run spore as root for machines on Firecracker"
}

// checkTap tries all of a slot that changes nothing of the host's network.
func (a *app) checkTap() check {
	pool, err := a.networks()
	if err == nil {
		err = pool.Check()
	}
	return tapCheck(err)
}

// tapCheck tells what came of trying.
func tapCheck(err error) check {
	c := check{Name: "tap network", Status: checkOK, Detail: "namespace, tap interface and packet filter work"}
	var unable *network.UnableError
	switch {
	case errors.As(err, &unable):
		c.Status, c.Detail, c.Fix = checkWarn, "--net tap is not to be had, --net user of QEMU is: "+unable.Reason.Error(), unable.Hint
	case err != nil:
		c.Status, c.Detail, c.Fix = checkWarn, "--net tap is not to be had, --net user of QEMU is: "+err.Error(), "check SPORE_TAP_SUBNET, or use --net user"
	}
	return c
}

// Room below which a check warns or fails: a machine's memory and disk must fit once, sparse as they are.
const (
	warnRoom = 4 << 30
	failRoom = 256 << 20
)

// checkFolder looks at the folder or, while there is none, at where it would be made.
func checkFolder(name, path string) check {
	at := path
	for {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) || filepath.Dir(at) == at {
			return check{Name: name, Status: checkFail, Detail: err.Error()}
		}
		at = filepath.Dir(at)
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		return check{Name: name, Status: checkFail, Detail: fmt.Sprintf("%s can't be written to: %v", at, err), Fix: folderFix(name)}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return check{Name: name, Status: checkFail, Detail: fmt.Sprintf("%s: %v", at, err)}
	}
	room := int64(fs.Bavail) * fs.Bsize
	c := check{Name: name, Status: checkOK, Detail: fmt.Sprintf("%s, %s free", path, formatBytes(room))}
	switch {
	case name == runFolder: // sockets only
	case room < failRoom:
		c.Status, c.Fix = checkFail, folderFix(name)
	case room < warnRoom:
		c.Status, c.Fix = checkWarn, folderFix(name)
	}
	return c
}

const runFolder = "run folder"

func folderFix(name string) string {
	switch name {
	case "store":
		return "remove snapshots (spore rm), or choose another folder by --store or SPORE_STORE"
	case "cache":
		return "delete the folder, or choose another by SNAPSHOT_CACHE_DIR"
	}
	return "choose another by SANDBOX_DIR"
}
