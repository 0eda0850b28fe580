package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
)

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"1.16.1": "1.16.1", "v1.10.0": "1.10.0", "1.17.0-dev\n": "1.17.0-dev", "1.16": "", "": "", "1.16.x": "", "1.-1.0": "", "1.70000.0": "",
		strings.Repeat("1", 100) + ".1.1": "",
	} {
		v, err := parseVersion(text)
		if (err == nil) != (want != "") || err == nil && v.String() != want {
			t.Errorf("parseVersion(%q) = %v, %v, want %q", text, v, err, want)
		}
	}
}

// TestVersionsAreOrdered checks atLeast against the order of numbers.
func TestVersionsAreOrdered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) version {
			return version{major: rapid.IntRange(0, 3).Draw(t, name), minor: rapid.IntRange(0, 20).Draw(t, name), patch: rapid.IntRange(0, 3).Draw(t, name)}
		}
		a, b := draw("a"), draw("b")
		if a.atLeast(b) != (a.major*100+a.minor >= b.major*100+b.minor) {
			t.Errorf("%v.atLeast(%v) = %v", a, b, a.atLeast(b))
		}
	})
}

// TestRefusals checks that what a version lacks is refused by name.
func TestRefusals(t *testing.T) {
	needX86(t)
	dir := fctest.Install(t, "amd64", "1.9.1", "1.16.0", "1.11.0", "1.12.0")
	for v, feature := range map[string]string{"1.9.1": "API", "1.16.0": "vsock"} {
		e := New(Programs{VersionsDir: dir, Version: v}, nil)
		var lacks *UnsupportedError
		if _, err := e.Describe(t.Context(), "amd64", vmm.Auto); !errors.As(err, &lacks) || lacks.Version != v || !strings.Contains(lacks.Feature, feature) {
			t.Errorf("%s: Describe: %v", v, err)
		}
		if _, err := e.Start(t.Context(), config(t)); !errors.As(err, &lacks) {
			t.Errorf("%s: Start: %v", v, err)
		}
		if got, err := e.Installed(t.Context(), "amd64"); got.Version != v || got.Path == "" || got.Newer || !errors.As(err, &lacks) {
			t.Errorf("%s: Installed: %+v, %v", v, got, err)
		}
	}
	old := New(Programs{VersionsDir: dir, Version: "1.11.0"}, nil)
	state, memory, _ := frozenOn(t, old, namedTap("tap0"))
	c := thawed(t, state, memory)
	c.Tap = namedTap("tap1")
	var lacks *UnsupportedError
	if _, err := old.Start(t.Context(), c); !errors.As(err, &lacks) || lacks.Feature != "network_overrides" || lacks.Since != "1.12.0" {
		t.Errorf("another tap device on 1.11: %v", err)
	}
	c = thawed(t, state, memory)
	c.Tap = namedTap("tap1")
	m := start(t, New(Programs{VersionsDir: dir, Version: "1.12.0"}, nil), c)
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if state, err := m.SaveState(t.Context()); err != nil || !strings.Contains(string(state), `"net0":"tap1"`) {
		t.Errorf("the machine is not on the other tap device: %s (%v)", state, err)
	}
}

// TestImpossible checks what no version can do.
func TestImpossible(t *testing.T) {
	e := testEngine(t, "1.16.1")
	for what, c := range map[string]struct {
		change func(*vmm.Config)
		want   string
	}{
		"emulation":      {func(c *vmm.Config) { c.Accel = vmm.TCG }, "emulation"},
		"another arch":   {func(c *vmm.Config) { c.Arch = "arm64" }, "arm64"},
		"user network":   {func(c *vmm.Config) { c.Network = vmm.NetUser }, "user"},
		"many CPUs":      {func(c *vmm.Config) { c.CPUs = 33 }, "33"},
		"odd memory":     {func(c *vmm.Config) { c.MemoryBytes++ }, "MiB"},
		"boot and thaw":  {func(c *vmm.Config) { c.State = []byte("x") }, "exactly one"},
		"served boot":    {func(c *vmm.Config) { c.Uffd = "x" }, "boots"},
		"no memory":      {func(c *vmm.Config) { c.Boot, c.State, c.Memory = nil, []byte("x"), nil }, "memory"},
		"missing kernel": {func(c *vmm.Config) { c.Boot.Kernel += "x" }, "counter.elfx"},
	} {
		t.Run(what, func(t *testing.T) {
			config := config(t)
			c.change(&config)
			if m, err := e.Start(t.Context(), config); err == nil {
				m.Close()
				t.Error("it starts")
			} else if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
			if left, err := os.ReadDir(config.Dir); err != nil || len(left) > 0 {
				t.Errorf("left in the machine's folder: %v (%v)", left, err)
			}
		})
	}
}

// TestKernels checks that kernels which Firecracker does not load are told from others before it is asked.
func TestKernels(t *testing.T) {
	file := func(content map[int]string) string {
		p := make([]byte, 1024)
		for at, text := range content {
			copy(p[at:], text)
		}
		path := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bz, elf, image := file(map[int]string{0: "MZ", 0x202: "HdrS"}), file(map[int]string{0: "\x7fELF"}), file(map[int]string{0x38: "ARM\x64"})
	for _, c := range []struct{ path, arch, want string }{
		{elf, "amd64", ""}, {image, "arm64", ""}, {bz, "amd64", "extract-vmlinux"}, {image, "amd64", "ELF"}, {elf, "arm64", "Image"},
	} {
		err := checkKernel(c.path, c.arch)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("checkKernel(%s): %v, want %q", c.arch, err, c.want)
		}
	}
}

// TestWhichBinary checks where Firecracker is looked for, and what is said where there is none.
func TestWhichBinary(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	put := func(path string) string {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o755)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	find := func(p Programs, want string) {
		t.Helper()
		if got, err := p.Find("amd64"); got != want || (err == nil) != (want != "") {
			t.Errorf("%+v: %q, %v, want %q", p, got, err, want)
		}
	}
	versions := Programs{VersionsDir: filepath.Join(dir, "versions")}
	find(versions, "")
	inPath := put("firecracker")
	find(versions, inPath)
	nine, ten := put("versions/v1.9.0/amd64/firecracker"), put("versions/1.10.1/x86_64/firecracker")
	put("versions/1.12.0/arm64/firecracker")
	put("versions/odd/amd64/firecracker")
	find(versions, ten)
	versions.Version = "1.9.0"
	find(versions, nine)
	versions.Version = "1.12.0"
	var missing *NotFoundError
	if _, err := versions.Find("amd64"); !errors.As(err, &missing) || !strings.Contains(err.Error(), "1.10.1") {
		t.Errorf("a version that is not there: %v", err)
	}
	find(Programs{Binary: nine, VersionsDir: versions.VersionsDir}, nine)
	find(Programs{Binary: nine + "x"}, "")
}

func FuzzParseVersion(f *testing.F) {
	for _, seed := range []string{"1.16.1", "v1.17.0-dev", "1..", "-1.2.3"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseVersion(text)
		if err != nil {
			return
		}
		if again, err := parseVersion(v.String()); err != nil || again.order()[0] != v.major || again.minor != v.minor || again.patch != v.patch {
			t.Errorf("%q is read as %v, which is read as %v (%v)", text, v, again, err)
		}
	})
}
