package guest

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sporevm/spore/internal/guest/boot"
)

// Kernel is a guest kernel with the modules that belong to it.
type Kernel struct {
	Path       string // of the image that the VMM loads
	Version    string // as `uname -r` prints it, or the file's name where nothing else is known
	Arch       string // amd64 or arm64
	ModulesDir string // folder of *.ko files; empty if everything is built in
}

// kernelFile is the image's name inside {version}/{arch}.
const kernelFile = "vmlinux.bin"

// archNames are the folder names of each architecture; the first is the one that scripts/kernel uses.
var archNames = map[string][]string{
	"amd64": {"amd64", "x86_64"},
	"arm64": {"arm64", "aarch64"},
}

// NoKernelError says that there is no kernel to boot, and what to do about it.
type NoKernelError struct {
	Spec string // what was asked for; empty: any
	Dir  string // where it was looked for
	Arch string
	Have []string // versions that are there, for this architecture
}

func (e *NoKernelError) Error() string {
	what := "no guest kernel"
	if e.Spec != "" {
		what = fmt.Sprintf("no guest kernel %q", e.Spec)
	}
	hint := "run scripts/kernel to get Debian's, or set HOST_KERNELS_DIR"
	if len(e.Have) > 0 {
		hint = "there are: " + strings.Join(e.Have, ", ")
	}
	return fmt.Sprintf("%s for %s in %s (%s)", what, e.Arch, e.Dir, hint)
}

// KernelsDir returns the folder of kernels: HOST_KERNELS_DIR, or the user's own data folder. getenv is os.Getenv or a test's.
func KernelsDir(getenv func(string) string) string {
	if dir := getenv("HOST_KERNELS_DIR"); dir != "" {
		return dir
	}
	data := getenv("XDG_DATA_HOME")
	if data == "" {
		data = filepath.Join(getenv("HOME"), ".local", "share")
	}
	return filepath.Join(data, "spore", "kernels")
}

// FindKernel finds the kernel that spec means: a path of an image, a version in dir, laid out as {version}/{arch}/vmlinux.bin, or, if empty, the newest
// version there is. arch is amd64 or arm64. Modules are taken from a folder "modules" beside the image. The error for a kernel that is not there is a
// *NoKernelError.
func FindKernel(dir, spec, arch string) (Kernel, error) {
	if archNames[arch] == nil {
		return Kernel{}, fmt.Errorf("no guest kernels for architecture %q: amd64 and arm64 are known", arch)
	}
	if strings.ContainsRune(spec, filepath.Separator) {
		return kernelAt(spec, "", arch)
	}
	if spec != "" {
		for _, name := range archNames[arch] {
			k, err := kernelAt(filepath.Join(dir, spec, name, kernelFile), spec, arch)
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return k, err
			}
		}
	}
	versions, err := kernelVersions(dir, arch)
	if err != nil {
		return Kernel{}, err
	}
	if spec != "" || len(versions) == 0 {
		return Kernel{}, &NoKernelError{Spec: spec, Dir: dir, Arch: arch, Have: versions}
	}
	return FindKernel(dir, versions[len(versions)-1], arch)
}

// kernelAt describes the kernel image at path. Without a version the image itself is asked, then its folder's name.
func kernelAt(path, version, arch string) (Kernel, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Kernel{}, fmt.Errorf("looking for the guest kernel: %w", err)
	}
	if !st.Mode().IsRegular() {
		return Kernel{}, fmt.Errorf("guest kernel %s is not a file", path)
	}
	if version == "" {
		if version, err = imageVersion(path); err != nil {
			return Kernel{}, err
		}
	}
	k := Kernel{Path: path, Version: version, Arch: arch}
	modules := filepath.Join(filepath.Dir(path), "modules")
	if st, err := os.Stat(modules); err == nil && st.IsDir() {
		k.ModulesDir = modules
	}
	return k, nil
}

// imageVersion reads the version out of an x86 kernel image (Documentation/arch/x86/boot), and makes do with the file's name for any other.
func imageVersion(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("opening the guest kernel: %w", err)
	}
	defer f.Close()
	// Offsets of the boot sector: a signature, and a pointer to the version's text that counts from the second sector.
	const magicAt, versionAt, sector = 0x202, 0x20e, 0x200
	head := make([]byte, 64<<10)
	n, err := f.ReadAt(head, 0)
	if n < 0x210 && err != nil || string(head[magicAt:magicAt+4]) != "HdrS" {
		return filepath.Base(path), nil
	}
	at := sector + int(head[versionAt]) + int(head[versionAt+1])<<8
	if at == sector || at >= n {
		return filepath.Base(path), nil
	}
	text := string(head[at:min(at+128, n)])
	if end := strings.IndexAny(text, " \x00"); end > 0 {
		return text[:end], nil
	}
	return filepath.Base(path), nil
}

// kernelVersions lists the versions in dir that have an image for arch, oldest first.
func kernelVersions(dir, arch string) ([]string, error) {
	var versions []string
	for _, name := range archNames[arch] {
		paths, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*", name, kernelFile))
		if err != nil {
			return nil, fmt.Errorf("looking for guest kernels in %s: %w", dir, err)
		}
		for _, p := range paths {
			versions = append(versions, filepath.Base(filepath.Dir(filepath.Dir(p))))
		}
	}
	slices.SortFunc(versions, compareVersions)
	return slices.Compact(versions), nil
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// compareVersions orders versions as people do: runs of digits by value, all else by text, and a version before any longer one that it begins.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, ra := leadingNumber(a)
		nb, rb := leadingNumber(b)
		var c int
		if na != "" && nb != "" {
			c = cmp.Or(cmp.Compare(len(na), len(nb)), cmp.Compare(na, nb))
		} else {
			c, ra, rb = cmp.Compare(a[0], b[0]), a[1:], b[1:]
		}
		if c != 0 {
			return c
		}
		a, b = ra, rb
	}
	return cmp.Compare(len(a), len(b))
}

// leadingNumber splits off the digits that s begins with, without leading zeros but for a last one.
func leadingNumber(s string) (number, rest string) {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	number = s[:end]
	for len(number) > 1 && number[0] == '0' {
		number = number[1:]
	}
	return number, s[end:]
}

// guestArgs are for every guest, whatever its engine.
var guestArgs = []string{
	// The kernel tests its ciphers at every boot; that is a tenth of a boot under emulation.
	"cryptomgr.notests=1",
	// It would look every four seconds whether a CPU is stuck. Emulated ones seem to be whenever their host is busy.
	"nowatchdog",
	// What the kernel does not know becomes the environment of process 1. Go interrupts a goroutine that runs for 10 ms so that others get their turn;
	// the agent never computes for so long, but in a guest that has just been thawed everything takes that long, and interrupts make it longer.
	"GODEBUG=asyncpreemptoff=1",
}

// KernelArgs returns what belongs on the kernel's command line of a guest whose root file system is on the block device root; empty means /dev/vda. The
// engine adds what the kernel needs to know of the machine.
func KernelArgs(root string, readOnly bool) string {
	args := slices.Clone(guestArgs)
	if root != "" {
		args = append(args, boot.ParamRoot+root)
	}
	if readOnly {
		args = append(args, boot.ParamReadOnly)
	}
	return strings.Join(args, " ")
}
