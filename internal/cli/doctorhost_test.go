package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/vmm/cage"
	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// hostTree makes a host of files; a name that ends in a slash is a folder.
func hostTree(t *testing.T, files map[string]string) hostFiles {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return hostFiles(dir)
}

// TestHostChecks looks at hosts that lack one thing each.
func TestHostChecks(t *testing.T) {
	for what, c := range map[string]struct {
		files               map[string]string
		check               func(hostFiles) check
		status, detail, fix string
	}{
		"intel":         {map[string]string{"sys/module/kvm_intel/": ""}, hostFiles.kvmModule, checkOK, "kvm_intel", ""},
		"amd":           {map[string]string{"sys/module/kvm_amd/": ""}, hostFiles.kvmModule, checkOK, "kvm_amd", ""},
		"intel missing": {map[string]string{"proc/cpuinfo": "flags\t\t: fpu vmx\n"}, hostFiles.kvmModule, checkWarn, "kvm_intel is not", "modprobe kvm_intel"},
		"amd missing":   {map[string]string{"proc/cpuinfo": "flags\t\t: fpu svm\n"}, hostFiles.kvmModule, checkWarn, "kvm_amd is not", "modprobe kvm_amd"},
		"no virtualization": {map[string]string{"proc/cpuinfo": "flags\t\t: fpu svmx\n", "sys/module/kvm_pvm/": ""}, hostFiles.kvmModule,
			checkWarn, "kvm_pvm", "firmware"},
		"no kvm": {map[string]string{"proc/cpuinfo": "flags\t\t: svm\n"}, func(h hostFiles) check { return h.kvmPermission(1) }, checkWarn, "no /dev/kvm", "sudo modprobe kvm"},
		"no kvm, intel": {map[string]string{"proc/cpuinfo": "flags\t\t: vmx\n"}, func(h hostFiles) check { return h.kvmPermission(1) }, checkWarn,
			"no /dev/kvm", "sudo modprobe kvm_intel"},
		"no tun":          {nil, func(h hostFiles) check { return h.tun(0) }, checkWarn, "no /dev/net/tun", "modprobe tun"},
		"tun of some":     {map[string]string{"dev/net/tun": ""}, func(h hostFiles) check { return h.tun(1) }, checkWarn, "only some", "65-tun.rules"},
		"tun for root":    {map[string]string{"dev/net/tun": ""}, func(h hostFiles) check { return h.tun(0) }, checkOK, "attach", ""},
		"huge pages":      {map[string]string{"proc/meminfo": "MemTotal: 1 kB\nHugePages_Total:     512\n"}, hostFiles.hugePages, checkOK, "512", ""},
		"no huge pages":   {map[string]string{"proc/meminfo": "HugePages_Total:       0\n"}, hostFiles.hugePages, checkOK, "none", "nr_hugepages"},
		"huge pages n/a":  {nil, hostFiles.hugePages, checkOK, "kernel has none", ""},
		"nbd":             {map[string]string{"sys/module/nbd/parameters/nbds_max": "4096\n"}, hostFiles.nbdModule, checkOK, "4096", ""},
		"no nbd":          {nil, hostFiles.nbdModule, checkOK, "not loaded", "modprobe nbd"},
		"no udev":         {nil, hostFiles.nbdRule, checkOK, "no udev", ""},
		"no rule":         {map[string]string{"lib/udev/rules.d/50-a.rules": "KERNEL==\"nbd*\", MODE=\"0600\"\n"}, hostFiles.nbdRule, checkWarn, "watches", "nowatch"},
		"a rule as words": {map[string]string{"etc/udev/rules.d/50-a.rules": "# KERNEL==\"nbd*\", OPTIONS:=\"nowatch\"\n"}, hostFiles.nbdRule, checkWarn, "watches", "nowatch"},
		"a rule": {map[string]string{"etc/udev/rules.d/97-nbd.rules": "ACTION==\"add|change\", KERNEL==\"nbd*\", OPTIONS:=\"nowatch\"\n"}, hostFiles.nbdRule,
			checkOK, "/etc/udev/rules.d/97-nbd.rules", ""},
	} {
		t.Run(what, func(t *testing.T) {
			if runtime.GOARCH != "amd64" && strings.Contains(c.detail+c.fix, "kvm_") {
				t.Skip("modules of x86")
			}
			got := c.check(hostTree(t, c.files))
			if got.Status != c.status || !strings.Contains(got.Detail, c.detail) || !strings.Contains(got.Fix, c.fix) || (c.fix == "") != (got.Fix == "") {
				t.Errorf("%+v, want %s, %q and %q", got, c.status, c.detail, c.fix)
			}
		})
	}
}

// TestKVMPermission looks at devices that some may open.
func TestKVMPermission(t *testing.T) {
	h := hostTree(t, map[string]string{"dev/kvm": ""})
	for _, c := range []struct {
		mode   os.FileMode
		uid    int
		status string
		fix    string
	}{{0o666, 0, checkOK, ""}, {0o666, 1, checkOK, ""}, {0o600, 0, checkWarn, "65-kvm.rules"}} {
		if err := os.Chmod(h.path("/dev/kvm"), c.mode); err != nil {
			t.Fatal(err)
		}
		if got := h.kvmPermission(c.uid); got.Status != c.status || !strings.Contains(got.Fix, c.fix) || len(got.stops) > 0 {
			t.Errorf("mode %o as %d: %+v", c.mode, c.uid, got)
		}
	}
}

// TestFirecrackerCheck looks for binaries that are missing, broken, too old, known to be bad, and good.
func TestFirecrackerCheck(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", "/usr/bin:/bin")
	binary := func(version string) firecracker.Programs {
		path := filepath.Join(dir, version, runtime.GOARCH, "firecracker")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho Firecracker v"+version+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return firecracker.Programs{VersionsDir: dir, Version: version}
	}
	for _, c := range []struct {
		programs firecracker.Programs
		arch     string
		status   string
		words    string
	}{
		{firecracker.Programs{VersionsDir: dir + "/none"}, runtime.GOARCH, checkWarn, "not installed"},
		{binary("1.9.0"), runtime.GOARCH, checkWarn, "1.10.0 or later"},
		{binary("1.16.0"), runtime.GOARCH, checkWarn, "vsock"},
		{binary("1.16.1"), runtime.GOARCH, checkOK, "1.16.1"},
		{binary("1.99.0"), runtime.GOARCH, checkWarn, "newer"},
		{binary("nonsense"), runtime.GOARCH, checkWarn, "no version"},
		{binary("1.16.1"), "other", checkWarn, "other"},
	} {
		got := checkFirecracker(t.Context(), c.programs, c.arch)
		if got.Status != c.status || !strings.Contains(got.Detail, c.words) || (got.Status == checkOK || c.words == "newer") != (len(got.stops) == 0) {
			t.Errorf("%+v: %+v, want %s and %q", c.programs, got, c.status, c.words)
		}
		if len(got.stops) > 0 && got.Fix == "" && c.arch == runtime.GOARCH {
			t.Errorf("%+v: no way to mend %q", c.programs, got.Detail)
		}
	}
}

// TestEngineStates checks whom what stops.
func TestEngineStates(t *testing.T) {
	for what, c := range map[string]struct {
		checks            []check
		qemu, firecracker []string
	}{
		"nothing":   {[]check{{Name: "a", Status: checkOK}, {Name: "b", Status: checkWarn}}, nil, nil},
		"no QEMU":   {[]check{{Name: engineQEMU, Status: checkFail}}, []string{engineQEMU}, nil},
		"no kernel": {[]check{{Name: "kernel", Status: checkFail}}, []string{"kernel"}, []string{"kernel"}},
		"no KVM":    {[]check{{Name: "kvm", Status: checkWarn, stops: []string{engineFirecracker}}}, nil, []string{"kvm"}},
	} {
		s := engineStates(c.checks)
		for engine, want := range map[string][]string{engineQEMU: c.qemu, engineFirecracker: c.firecracker} {
			if got := s[engine]; got.Ready != (len(want) == 0) || !slices.Equal(got.Missing, want) && len(want)+len(got.Missing) > 0 {
				t.Errorf("%s: %s is %+v, want missing %q", what, engine, got, want)
			}
		}
	}
}

// TestDoctorJail checks that what --jail lacks is told with the way to mend it.
func TestDoctorJail(t *testing.T) {
	if err := cage.CheckRoom(); err != nil {
		t.Skipf("no jails here: %v", err)
	}
	dir := t.TempDir()
	t.Setenv("PATH", "/usr/bin:/bin")
	program := func(name, says string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho "+says+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a := &app{Streams: Streams{Getenv: func(string) string { return "" }}}
	programs := firecracker.Programs{VersionsDir: dir + "/none"}
	for _, c := range []struct {
		change      func()
		detail, fix string
	}{
		{func() {}, "no Firecracker", ""},
		{func() { programs.Binary = program("firecracker", "Firecracker v1.16.1") }, "no jailer", "put the one of the same release at " + dir + "/jailer"},
		{func() { program("jailer", "Jailer v1.15.1") }, `version "1.15.1"`, "the same release"},
	} {
		c.change()
		if got := a.checkJail(t.Context(), programs, runtime.GOARCH); got.Status != checkWarn || !strings.Contains(got.Detail, c.detail) || !strings.Contains(got.Fix, c.fix) {
			t.Errorf("%+v, want %q and %q", got, c.detail, c.fix)
		}
	}
	program("jailer", "Jailer v1.16.1")
	got := a.checkJail(t.Context(), programs, runtime.GOARCH)
	if limited := !strings.Contains(got.Detail, "no controller"); limited && got.Status != checkOK || !limited && got.Status != checkWarn {
		t.Errorf("with all that it takes: %+v", got)
	}
}

// TestUserfaultCheck tells why no memory is served apart from what mends that.
func TestUserfaultCheck(t *testing.T) {
	for _, c := range []struct {
		err         error
		status, fix string
	}{
		{nil, checkOK, ""},
		{fmt.Errorf("asking: %w", &firecracker.UnservedError{Why: "the door is locked", Fix: "knock"}), checkWarn, "knock"},
		{errors.New("the door is locked"), checkWarn, ""},
	} {
		got := checkUserfault(c.err)
		if got.Status != c.status || got.Fix != c.fix || strings.Contains(got.Detail, "knock") || c.err != nil && !strings.Contains(got.Detail, "the door is locked") {
			t.Errorf("%v: %+v", c.err, got)
		}
	}
}

// TestTapCheck tells why there are no tap interfaces apart from what mends that.
func TestTapCheck(t *testing.T) {
	for _, c := range []struct {
		err         error
		status, fix string
	}{
		{nil, checkOK, ""},
		{fmt.Errorf("trying: %w", &network.UnableError{Reason: errors.New("the wire is cut"), Hint: "splice it"}), checkWarn, "splice it"},
		{errors.New("the wire is cut"), checkWarn, "--net user"},
	} {
		got := tapCheck(c.err)
		if got.Status != c.status || !strings.Contains(got.Fix, c.fix) || (got.Fix == "") != (c.err == nil) || strings.Contains(got.Detail, "splice") ||
			c.err != nil && !strings.Contains(got.Detail, "the wire is cut") {
			t.Errorf("%v: %+v", c.err, got)
		}
	}
}
