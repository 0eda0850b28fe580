package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// facts are what is slow to find out about the host and one QEMU binary. They hold until the host boots again or the binary is replaced.
type facts struct {
	Boot    string    `json:"boot"`   // the kernel's boot id
	Binary  string    `json:"binary"` // path, size, time of change
	Version string    `json:"version"`
	TSCKHz  int64     `json:"tsc_khz"`
	KVM     KVMStatus `json:"kvm"`
}

// facts returns the facts about a binary, from memory, from the cache folder, or from the probes.
func (e *Engine) facts(ctx context.Context, binary string) (facts, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f, ok := e.known[binary]; ok {
		return f, nil
	}
	want, path, err := factsKey(binary)
	if err != nil {
		return facts{}, err
	}
	file := filepath.Join(e.cacheDir, "probe-"+binary+".json")
	if got, err := readFacts(file); err == nil && got.Boot == want.Boot && got.Binary == want.Binary {
		e.known[binary] = got
		return got, nil
	}
	f := want
	if f.Version, err = askVersion(ctx, path); err != nil {
		return facts{}, err
	}
	f.TSCKHz = hostTSCKHz()
	f.KVM = probeKVM(ctx, path)
	if err := ctx.Err(); err != nil {
		return facts{}, err // a probe that was cut short says nothing
	}
	// Losing the cache costs time only, so a folder that can't be written is no error.
	_ = writeFacts(file, f)
	e.known[binary] = f
	return f, nil
}

// factsKey returns what facts must match to be believed, and the binary's path.
func factsKey(binary string) (key facts, path string, err error) {
	path, err = exec.LookPath(binary)
	if err != nil {
		return facts{}, "", notInstalled(binary)
	}
	info, err := os.Stat(path)
	if err != nil {
		return facts{}, "", fmt.Errorf("examining %s: %w", path, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return facts{}, "", fmt.Errorf("reading the boot id: %w", err)
	}
	kvm := "none"
	if st, err := os.Stat("/dev/kvm"); err == nil {
		kvm = fmt.Sprintf("%v/%v", st.Mode(), st.Sys().(*syscall.Stat_t).Gid) // a permission mended since is a reason to look again
	}
	return facts{
		Boot:   strings.TrimSpace(string(boot)),
		Binary: fmt.Sprintf("%s %d %d kvm=%s uid=%d", path, info.Size(), info.ModTime().UnixNano(), kvm, os.Geteuid()),
	}, path, nil
}

func readFacts(file string) (facts, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return facts{}, err
	}
	var f facts
	return f, json.Unmarshal(data, &f)
}

func writeFacts(file string, f facts) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".probe-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

var versionPattern = regexp.MustCompile(`version (\d+\.\d+\.\d+)`)

func askVersion(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	match := versionPattern.FindSubmatch(out)
	if match == nil {
		return "", fmt.Errorf("asking %s for its version: it says %q", path, firstLine(string(out)))
	}
	return string(match[1]), nil
}
