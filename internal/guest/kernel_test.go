package guest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func putKernels(t *testing.T, paths ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range paths {
		full := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(p, "/") {
			if err := os.MkdirAll(full, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(full, []byte("kernel"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindKernel(t *testing.T) {
	dir := putKernels(t,
		"6.1.0-9-cloud-amd64/amd64/vmlinux.bin", "6.1.0-56-cloud-amd64/amd64/vmlinux.bin", "6.1.0-56-cloud-amd64/amd64/modules/virtio.ko",
		"vmlinux-5.10/x86_64/vmlinux.bin", "6.12/aarch64/vmlinux.bin", "7.0/amd64/config", "single/vmlinux.bin",
	)
	at := func(p string) string { return filepath.Join(dir, p) }
	for name, c := range map[string]struct {
		spec, arch string
		want       Kernel
	}{
		"newest": {"", "amd64", Kernel{Path: at("vmlinux-5.10/x86_64/vmlinux.bin"), Version: "vmlinux-5.10", Arch: "amd64"}},
		"version": {"6.1.0-56-cloud-amd64", "amd64", Kernel{
			Path: at("6.1.0-56-cloud-amd64/amd64/vmlinux.bin"), Version: "6.1.0-56-cloud-amd64", Arch: "amd64", ModulesDir: at("6.1.0-56-cloud-amd64/amd64/modules"),
		}},
		"other name": {"vmlinux-5.10", "amd64", Kernel{Path: at("vmlinux-5.10/x86_64/vmlinux.bin"), Version: "vmlinux-5.10", Arch: "amd64"}},
		"other arch": {"", "arm64", Kernel{Path: at("6.12/aarch64/vmlinux.bin"), Version: "6.12", Arch: "arm64"}},
		"path":       {at("single/vmlinux.bin"), "arm64", Kernel{Path: at("single/vmlinux.bin"), Version: "vmlinux.bin", Arch: "arm64"}},
	} {
		got, err := FindKernel(dir, c.spec, c.arch)
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}

func TestFindKernelFails(t *testing.T) {
	dir := putKernels(t, "6.1/amd64/vmlinux.bin", "6.2/amd64/vmlinux.bin/")
	for name, c := range map[string]struct{ dir, spec, arch, want string }{
		"unknown":     {dir, "6.0", "amd64", `no guest kernel "6.0" for amd64 in ` + dir + ` (there are: 6.1`},
		"nothing":     {t.TempDir(), "", "amd64", "run scripts/kernel"},
		"no folder":   {filepath.Join(dir, "missing"), "", "amd64", "run scripts/kernel"},
		"other arch":  {dir, "6.1", "arm64", "run scripts/kernel"},
		"arch":        {dir, "", "riscv64", `architecture "riscv64"`},
		"path":        {dir, "./missing", "amd64", "looking for the guest kernel"},
		"not a file":  {dir, dir + "/6.1", "amd64", "is not a file"},
		"a directory": {dir, "6.2", "amd64", "is not a file"},
	} {
		_, err := FindKernel(c.dir, c.spec, c.arch)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	var missing *NoKernelError
	if _, err := FindKernel(dir, "6.0", "amd64"); !errors.As(err, &missing) || !slices.Contains(missing.Have, "6.1") {
		t.Errorf("%v is not a NoKernelError that knows what there is", err)
	}
}

func TestImageVersion(t *testing.T) {
	image := make([]byte, 4096)
	copy(image[0x202:], "HdrS")
	image[0x20e], image[0x20f] = 0x00, 0x04 // 0x400 after the first sector
	copy(image[0x600:], "6.1.0-56-cloud-amd64 (someone@somewhere) #1 SMP\x00")
	path := filepath.Join(t.TempDir(), "vmlinuz")
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"bzImage": {image, "6.1.0-56-cloud-amd64"}, "cut": {image[:0x600], "vmlinuz"}, "short": {image[:100], "vmlinuz"}, "empty": {nil, "vmlinuz"},
		"other": {make([]byte, 4096), "vmlinuz"},
	} {
		if err := os.WriteFile(path, c.image, 0o644); err != nil {
			t.Fatal(err)
		}
		if k, err := FindKernel("", path, "amd64"); err != nil || k.Version != c.want {
			t.Errorf("%s: %q, %v; want %q", name, k.Version, err, c.want)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	want := []string{"5.10", "6.1", "6.1.0-9-cloud", "6.1.0-10-cloud", "6.1.0-010-cloud-x", "6.1.9", "6.12", "10.0", "rc"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareVersions)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestKernelsDir(t *testing.T) {
	for want, env := range map[string]map[string]string{
		"/k":                            {"HOST_KERNELS_DIR": "/k", "XDG_DATA_HOME": "/x", "HOME": "/h"},
		"/x/spore/kernels":              {"XDG_DATA_HOME": "/x", "HOME": "/h"},
		"/h/.local/share/spore/kernels": {"HOME": "/h"},
	} {
		if got := KernelsDir(func(k string) string { return env[k] }); got != want {
			t.Errorf("%v: %s, want %s", env, got, want)
		}
	}
}

func TestKernelArgs(t *testing.T) {
	if got := KernelArgs("/dev/vdb", true); !strings.HasSuffix(got, " spore.root=/dev/vdb spore.ro") {
		t.Error(got)
	}
	if got := KernelArgs("", false); strings.Contains(got, "spore.") {
		t.Error(got)
	}
}
