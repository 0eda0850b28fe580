package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"strings"
)

// maxModInfo bounds the ".modinfo" section: Debian's largest, of a driver for hundreds of devices, has some 30 KiB.
const maxModInfo = 1 << 20

// moduleInfo reads from a kernel module the names of the modules it depends on, and the aliases of the devices on virtio and PCI that it drives.
func moduleInfo(data []byte) (needs, devices []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil, errors.New("it has no .modinfo section: not a kernel module")
	}
	if section.Size > maxModInfo {
		return nil, nil, fmt.Errorf("its .modinfo section has %d bytes: at most %d are allowed", section.Size, maxModInfo)
	}
	text, err := section.Data()
	if err != nil {
		return nil, nil, fmt.Errorf("reading its .modinfo section: %w", err)
	}
	for field := range strings.SplitSeq(string(text), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch {
		case key == "depends" && value != "":
			needs = strings.Split(value, ",")
		case key == "alias" && (strings.HasPrefix(value, "virtio:") || strings.HasPrefix(value, "pci:")) && !strings.ContainsAny(value, " \t\n"):
			devices = append(devices, value)
		}
	}
	for _, n := range needs {
		if n == "" || strings.ContainsAny(n, "/\x00") || strings.HasPrefix(n, ".") {
			return nil, nil, fmt.Errorf("it depends on a module of the impossible name %q", n)
		}
	}
	return needs, devices, nil
}

// plainName is a module's name as the kernel compares it: dashes and underscores are one.
func plainName(name string) string { return strings.ReplaceAll(name, "-", "_") }

func trimModule(file string) string { return strings.TrimSuffix(file, ".ko") }

// spellings returns the file names that a module may go by.
func spellings(name string) []string {
	all := []string{name}
	for _, s := range []string{plainName(name), strings.ReplaceAll(name, "_", "-")} {
		if s != name {
			all = append(all, s)
		}
	}
	return all
}
