package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const zones = `Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
  pages free     3478
        boost    0
        min      44
        spanned  4095
        present  3998
        managed  3840
Node 0, zone    DMA32
  pages free     103722
        present  126976
        managed  116264
  pagesets
    cpu: 0
              count: 12
Node 0, zone   Normal
  pages free     0
        present  0
`

func TestParseZones(t *testing.T) {
	page := int64(os.Getpagesize())
	got, err := parseZones([]byte(zones))
	if want := (memory{total: (3998 + 126976) * page, free: (3478 + 103722) * page}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, text := range []string{"", "present many\n", "pages free -1\n", "present 99999999999999999999\n"} {
		if m, err := parseZones([]byte(text)); err == nil {
			t.Errorf("%q is %+v", text, m)
		}
	}
	m, err := readMemory()
	if err != nil || m.free <= 0 || m.free > m.total {
		t.Errorf("this machine: %+v, %v", m, err)
	}
}

func FuzzParseZones(f *testing.F) {
	f.Add([]byte(zones))
	f.Fuzz(func(t *testing.T, text []byte) {
		if m, err := parseZones(text); err == nil && m.total <= 0 {
			t.Errorf("%+v", m)
		}
	})
}

func TestCountInterrupts(t *testing.T) {
	const text = `           CPU0       CPU1
 49:        105          5   IO-APIC  23-fasteoi   virtio0
 50:          6          1   IO-APIC  22-fasteoi   virtio1
 51:         18          2   PCI-MSI  1-edge      virtio1-reporting_vq
 52:          9          9   IO-APIC  20-fasteoi   virtio10
NMI:          0          0   Non-maskable interrupts
`
	for device, want := range map[string]int64{"virtio0": 110, "virtio1": 27, "virtio2": 0, "interrupts": 0} {
		if got := countInterrupts([]byte(text), device); got != want {
			t.Errorf("%s: %d, want %d", device, got, want)
		}
	}
}

func TestBalloon(t *testing.T) {
	dir := t.TempDir()
	for _, want := range []string{"", "virtio3"} {
		if want != "" {
			if err := os.Mkdir(filepath.Join(dir, want), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := balloon(dir); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if got, err := balloon(filepath.Join(dir, "missing")); err != nil || got != "" {
		t.Errorf("without the driver: %q, %v", got, err)
	}
}

// group makes the files of a control group as a kernel would, in state frozen.
func group(t *testing.T, root, name, freeze, events string) string {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"cgroup.freeze": freeze, "cgroup.events": events, "cgroup.procs": "1\n2\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func state(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text[:1])
}

func TestFreezeHoldsAllGroups(t *testing.T) {
	root := t.TempDir()
	c := &UserCgroup{root: root, path: filepath.Join(root, "user")}
	user := group(t, root, "user", "0\n", "populated 1\nfrozen 1\n")
	other := group(t, root, "made-by-user", "0\n", "populated 1\nfrozen 1\n")
	paused := group(t, root, "paused-by-user", "1\n", "populated 1\nfrozen 1\n")
	if err := c.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids, err := c.PIDs(); err != nil || len(pids) != 6 {
		t.Errorf("%d processes, %v; want 6", len(pids), err)
	}
	for _, dir := range []string{user, other, paused} {
		if state(t, dir) != "1" {
			t.Errorf("%s runs", dir)
		}
	}
	if err := c.Thaw(); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{user: "0", other: "0", paused: "1"} {
		if got := state(t, dir); got != want {
			t.Errorf("%s is %s after the thaw, want %s", dir, got, want)
		}
	}
}

// Processes that don't stop in time run on, all of them.
func TestFreezeGivesUp(t *testing.T) {
	root := t.TempDir()
	c := &UserCgroup{root: root, path: filepath.Join(root, "user")}
	quick := group(t, root, "quick", "0\n", "populated 1\nfrozen 1\n")
	stuck := group(t, root, "stuck", "0\n", "populated 1\nfrozen 0\n")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if err := c.Freeze(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("freezing what does not freeze: %v", err)
	}
	for _, dir := range []string{quick, stuck} {
		if state(t, dir) != "0" {
			t.Errorf("%s stays frozen", dir)
		}
	}
}
