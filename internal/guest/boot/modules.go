package boot

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// buses are those whose devices the list may name; each device tells in a file what it is.
var buses = []string{"/sys/bus/virtio/devices", "/sys/bus/pci/devices"}

// loadModules loads the modules that list names, in its order, and deletes them: the initramfs lives in memory. A line is a file name in dir,
// optionally followed by aliases of devices; with aliases, the module is loaded only where such a device is present.
// No list at all means that the kernel has everything built in.
func loadModules(list, dir string) error {
	f, err := os.Open(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the list of modules: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		path := filepath.Join(dir, fields[0])
		if wanted(fields[1:]) {
			if err := loadModule(path); err != nil {
				return fmt.Errorf("loading module %s: %w", fields[0], err)
			}
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("dropping module %s: %w", fields[0], err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the list of modules: %w", err)
	}
	return errors.Join(os.Remove(list), os.Remove(dir))
}

// wanted reports whether a device answers to one of the aliases, such as "virtio:d00000002v*". Devices are on the bus as soon as the bus's own
// driver has been loaded, because the list is in order of dependency.
func wanted(aliases []string) bool {
	if len(aliases) == 0 {
		return true
	}
	for _, bus := range buses {
		devices, err := os.ReadDir(bus)
		if err != nil {
			continue // the kernel has no such bus
		}
		for _, device := range devices {
			text, err := os.ReadFile(filepath.Join(bus, device.Name(), "modalias"))
			if err == nil && matches(aliases, strings.TrimSpace(string(text))) {
				return true
			}
		}
	}
	return false
}

func matches(aliases []string, name string) bool {
	return slices.ContainsFunc(aliases, func(alias string) bool {
		ok, err := filepath.Match(alias, name)
		return ok && err == nil
	})
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
