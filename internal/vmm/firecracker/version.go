package firecracker

import (
	"fmt"
	"strconv"
	"strings"
)

// version is that of a Firecracker binary.
type version struct {
	major, minor, patch int
	text                string
}

// The versions that this client knows: the oldest it can speak to, and the newest whose API description it was written by.
var (
	oldest = version{major: 1, minor: 10}
	newest = version{major: 1, minor: 17}
)

// parseVersion reads "1.16.1", with or without a leading v, or "1.17.0-dev".
func parseVersion(text string) (version, error) {
	v := version{text: strings.TrimPrefix(strings.TrimSpace(text), "v")}
	number, _, _ := strings.Cut(v.text, "-")
	parts := strings.Split(number, ".")
	if len(parts) != 3 || len(text) > 64 {
		return version{}, fmt.Errorf("%.64q is no version of Firecracker", text)
	}
	for i, field := range []*int{&v.major, &v.minor, &v.patch} {
		n, err := strconv.ParseUint(parts[i], 10, 16)
		if err != nil {
			return version{}, fmt.Errorf("%.64q is no version of Firecracker", text)
		}
		*field = int(n)
	}
	return v, nil
}

func (v version) String() string {
	if v.text != "" {
		return v.text
	}
	return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch)
}

// atLeast compares without the patch level: features come with minor versions.
func (v version) atLeast(o version) bool {
	return v.major > o.major || v.major == o.major && v.minor >= o.minor
}

// feature is something that not all versions have.
type feature struct {
	name  string
	since version
}

// What came after 1.10, as far as this client uses it.
var (
	networkOverrides = feature{"network_overrides", version{major: 1, minor: 12}}
	trackDirtyPages  = feature{"track_dirty_pages", version{major: 1, minor: 13}} // before: enable_diff_snapshots
	vsockOverride    = feature{"vsock_override", version{major: 1, minor: 16}}
)

// UnsupportedError says that a version of Firecracker lacks a feature.
type UnsupportedError struct {
	Feature string
	Version string // that runs
	Since   string // that has it
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("firecracker %s lacks %s: use version %s or later", e.Version, e.Feature, e.Since)
}

// need refuses a feature that the version lacks.
func (v version) need(f feature) error {
	if v.atLeast(f.since) {
		return nil
	}
	return &UnsupportedError{Feature: f.name, Version: v.String(), Since: f.since.String()}
}

// check refuses versions with which nothing works: those older than the API that we speak, and the one whose guests can't be reached once they have been frozen.
func (v version) check() error {
	if !v.atLeast(oldest) {
		return &UnsupportedError{Feature: "the API that spore speaks", Version: v.String(), Since: oldest.String()}
	}
	if v.major == 1 && v.minor == 16 && v.patch == 0 && !strings.Contains(v.text, "-") {
		return &UnsupportedError{Feature: "a vsock that works after a restore", Version: v.String(), Since: "1.16.1"}
	}
	return nil
}
