package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Programs says where Firecracker is looked for.
type Programs struct {
	Binary      string // path; wins over the rest
	VersionsDir string // holds {version}/{arch}/firecracker
	Version     string // one of VersionsDir; empty: the newest there, then what PATH has
}

// NotFoundError says that there is no Firecracker, and what to do about it.
type NotFoundError struct {
	Version string // that was asked for; empty: any
	Dir     string
	Have    []string // versions that are there
}

func (e *NotFoundError) Error() string {
	what := "Firecracker is not installed"
	if e.Version != "" {
		what = "there is no Firecracker " + e.Version
	}
	hint := fmt.Sprintf("put one at %s/{version}/{arch}/firecracker, or name it by SPORE_FIRECRACKER", e.Dir)
	if len(e.Have) > 0 {
		hint = "there are: " + strings.Join(e.Have, ", ")
	}
	return what + " (" + hint + ")"
}

// archNames are the folder names of each architecture, ours first.
func archNames(arch string) []string {
	switch arch {
	case "amd64":
		return []string{"amd64", "x86_64"}
	case "arm64":
		return []string{"arm64", "aarch64"}
	}
	return nil
}

// Find returns the path of the binary for an architecture.
func (p Programs) Find(arch string) (string, error) {
	if p.Binary != "" {
		if _, err := os.Stat(p.Binary); err != nil {
			return "", fmt.Errorf("looking for Firecracker: %w", err)
		}
		return filepath.Abs(p.Binary)
	}
	have := p.versions(arch)
	if p.Version != "" {
		for _, v := range have {
			if strings.TrimPrefix(v.name, "v") == strings.TrimPrefix(p.Version, "v") {
				return v.path, nil
			}
		}
	} else if len(have) > 0 {
		return have[len(have)-1].path, nil
	} else if path, err := exec.LookPath("firecracker"); err == nil {
		return filepath.Abs(path)
	}
	missing := &NotFoundError{Version: p.Version, Dir: p.VersionsDir}
	for _, v := range have {
		missing.Have = append(missing.Have, v.name)
	}
	return "", missing
}

// Has tells whether a version for an architecture is in the folder of versions.
func (p Programs) Has(version, arch string) bool {
	p.Binary, p.Version = "", version
	_, err := p.Find(arch)
	return version != "" && err == nil
}

// installed is a binary in the folder of versions.
type installed struct {
	name, path string
	version    version
}

// versions lists the binaries of an architecture, oldest first. Folders that are named after no version come first of all.
func (p Programs) versions(arch string) []installed {
	var out []installed
	for _, name := range archNames(arch) {
		folders, err := os.ReadDir(p.VersionsDir)
		if err != nil {
			continue
		}
		for _, folder := range folders {
			path := filepath.Join(p.VersionsDir, folder.Name(), name, "firecracker")
			if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
				continue
			}
			v, _ := parseVersion(folder.Name())
			out = append(out, installed{name: folder.Name(), path: path, version: v})
		}
	}
	slices.SortStableFunc(out, func(a, b installed) int { return slices.Compare(a.version.order(), b.version.order()) })
	return out
}

func (v version) order() []int { return []int{v.major, v.minor, v.patch} }

// facts are what a binary says of itself.
type facts struct {
	path    string
	version version
	format  string // of the device state that it saves and loads, such as "v8.0.0"
}

// ask runs the binary to learn its version, which takes a few milliseconds.
func ask(ctx context.Context, path string) (facts, error) {
	f := facts{path: path}
	text, err := output(ctx, path, "--version")
	if err != nil {
		return f, err
	}
	line, _, _ := strings.Cut(text, "\n")
	if f.version, err = parseVersion(strings.TrimPrefix(line, "Firecracker ")); err != nil {
		return f, fmt.Errorf("asking %s for its version: %w", path, err)
	}
	if text, err = output(ctx, path, "--snapshot-version"); err != nil {
		return f, err
	}
	f.format, _, _ = strings.Cut(text, "\n")
	if len(f.format) > 64 {
		return f, fmt.Errorf("asking %s for the version of its snapshots: it says %.64q", path, f.format)
	}
	return f, nil
}

func output(ctx context.Context, path, flag string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, flag)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w; make it executable: chmod +x %s", err, path)
	}
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	return string(out), nil
}
