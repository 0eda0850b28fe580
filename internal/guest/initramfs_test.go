package guest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeModule is an ELF file with nothing but a .modinfo section.
func fakeModule(info string) []byte {
	const names = "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	le := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	infoAt, namesAt := 64, 64+len(info)
	sections := namesAt + len(names)
	le([]uint16{1, 62}) // relocatable, x86-64
	le(uint32(1))
	le([]uint64{0, 0, uint64(sections)})
	le(uint32(0))
	le([]uint16{64, 0, 0, 64, 3, 2})
	b.WriteString(info + names)
	b.Write(make([]byte, 64))
	for i, s := range [][2]int{{infoAt, len(info)}, {namesAt, len(names)}} {
		le([]uint32{uint32([]int{1, 10}[i]), uint32([]int{1, 3}[i])})
		le([]uint64{0, 0, uint64(s[0]), uint64(s[1])})
		le([]uint32{0, 0})
		le([]uint64{1, 0})
	}
	return b.Bytes()
}

func fakeAgent(machine byte) []byte {
	return append(append([]byte("\x7fELF\x02\x01\x01"+strings.Repeat("\x00", 11)), machine, 0), bytes.Repeat([]byte("agent"), 100)...)
}

func modulesDir(t *testing.T, infos map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, info := range infos {
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), fakeModule(info), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var someModules = map[string]string{
	"virtio_ring":    "depends=\x00",
	"virtio":         "depends=virtio_ring\x00",
	"virtio_mmio":    "alias=acpi*:LNRO0005:*\x00depends=virtio,virtio_ring\x00",
	"virtio_pci":     "alias=pci:v00001AF4d*sv*sd*bc*sc*i*\x00depends=virtio_ring,virtio,virtio_pci_dev\x00",
	"virtio_pci_dev": "depends=\x00",
	"virtio_net":     "alias=virtio:d00000001v*\x00depends=virtio_ring,virtio,net-failover\x00",
	"net_failover":   "depends=failover\x00",
	"failover":       "depends=\x00",
	"virtio-rng":     "alias=virtio:d00000004v*\x00depends=virtio,virtio_ring\x00",
	"unasked":        "depends=\x00",
	"virtio_console": "alias=virtio:d00000003v*\x00depends=virtio\x00",
}

// unpack reads an archive back: the names in order, and the contents.
func unpack(t *testing.T, b []byte) (names []string, entries map[string]cpioEntry) {
	t.Helper()
	entries = make(map[string]cpioEntry)
	field := func(i int) int64 {
		n, err := strconv.ParseInt(string(b[6+8*i:14+8*i]), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for {
		if string(b[:6]) != cpioMagic {
			t.Fatalf("no entry but %q", b[:6])
		}
		e := cpioEntry{mode: uint32(field(1)), major: uint32(field(9)), minor: uint32(field(10))}
		size, nameSize := field(6), field(11)
		e.name = string(b[110 : 110+nameSize-1])
		at := (110 + nameSize + 3) &^ 3
		e.data = b[at : at+size]
		b = b[(at+size+3)&^3:]
		if e.name == cpioTrailer {
			return names, entries
		}
		names = append(names, e.name)
		entries[e.name] = e
	}
}

func TestInitramfs(t *testing.T) {
	k := Kernel{Arch: "amd64", ModulesDir: modulesDir(t, someModules)}
	var first, second bytes.Buffer
	for _, w := range []io.Writer{&first, &second} {
		if err := Initramfs(w, k, fakeAgent(62)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same agent and modules make different bytes")
	}
	names, entries := unpack(t, first.Bytes())
	wantNames := []string{
		"dev", "dev/console", "dev/null", "init", "modules", "modules/virtio_ring.ko", "modules/virtio.ko", "modules/virtio_mmio.ko",
		"modules/virtio_pci_dev.ko", "modules/virtio_pci.ko", "modules/virtio_console.ko", "modules/failover.ko", "modules/net_failover.ko", "modules/virtio_net.ko", "modules/virtio-rng.ko", "modules.list",
	}
	if diff := cmp.Diff(wantNames, names); diff != "" {
		t.Error(diff)
	}
	wantList := "virtio_ring.ko\nvirtio.ko\nvirtio_mmio.ko\nvirtio_pci_dev.ko pci:v00001AF4d*sv*sd*bc*sc*i*\n" +
		"virtio_pci.ko pci:v00001AF4d*sv*sd*bc*sc*i*\nvirtio_console.ko virtio:d00000003v*\nfailover.ko virtio:d00000001v*\n" +
		"net_failover.ko virtio:d00000001v*\nvirtio_net.ko virtio:d00000001v*\nvirtio-rng.ko virtio:d00000004v*\n"
	if got := string(entries["modules.list"].data); got != wantList {
		t.Errorf("the list of modules:\n%s\nwant\n%s", got, wantList)
	}
	if e := entries["init"]; e.mode != 0o100755 || !bytes.Equal(e.data, fakeAgent(62)) {
		t.Errorf("the agent has mode %o and %d bytes", e.mode, len(e.data))
	}
	for name, dev := range map[string][2]uint32{"dev/console": {5, 1}, "dev/null": {1, 3}} {
		if e := entries[name]; e.mode&0o170000 != 0o020000 || [2]uint32{e.major, e.minor} != dev {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if first.Len()%512 != 0 {
		t.Errorf("%d bytes are not whole blocks", first.Len())
	}
	// The digest is in the metadata of snapshots: the format must not change unnoticed.
	const golden = "0719f5aad6284870"
	if got := fmt.Sprintf("%x", sha256.Sum256(first.Bytes())); !strings.HasPrefix(got, golden) {
		t.Errorf("digest %s, want %s…", got, golden)
	}
}

func TestInitramfsWithoutModules(t *testing.T) {
	var b bytes.Buffer
	if err := Initramfs(&b, Kernel{Arch: "arm64"}, fakeAgent(183)); err != nil {
		t.Fatal(err)
	}
	if names, _ := unpack(t, b.Bytes()); slices.Contains(names, "modules.list") {
		t.Errorf("there are no modules, but %v", names)
	}
}

func TestInitramfsRefuses(t *testing.T) {
	many := make([]byte, maxAgent+1)
	copy(many, fakeAgent(62))
	for name, c := range map[string]struct {
		modules map[string]string
		agent   []byte
		want    string
	}{
		"missing dependency": {map[string]string{"overlay": "depends=nosuch\x00"}, fakeAgent(62), "module nosuch is not in"},
		"circle":             {map[string]string{"overlay": "depends=fuse\x00", "fuse": "depends=overlay\x00"}, fakeAgent(62), "depends on itself"},
		"hostile name":       {map[string]string{"overlay": "depends=../../etc/passwd\x00"}, fakeAgent(62), "impossible name"},
		"other arch":         {nil, fakeAgent(183), "not an executable for amd64"},
		"no agent":           {nil, []byte("#!/bin/sh"), "not an executable"},
		"large agent":        {nil, many, "at most"},
	} {
		err := Initramfs(io.Discard, Kernel{Arch: "amd64", ModulesDir: modulesDir(t, c.modules)}, c.agent)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "fuse.ko"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Initramfs(io.Discard, Kernel{Arch: "amd64", ModulesDir: dir}, fakeAgent(62)); err == nil || !strings.Contains(err.Error(), "module fuse") {
		t.Errorf("a module that is text: %v", err)
	}
	if err := Initramfs(&fullDisk{room: 1000}, Kernel{Arch: "amd64"}, fakeAgent(62)); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
}

var errFull = errors.New("no room")

type fullDisk struct{ room int }

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func FuzzModuleInfo(f *testing.F) {
	f.Add(fakeModule("alias=virtio:d00000001v*\x00depends=a,b\x00"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		needs, devices, err := moduleInfo(data)
		if err != nil {
			return
		}
		for _, n := range needs {
			if n == "" || strings.ContainsAny(n, "/\x00") {
				t.Errorf("needs %q", n)
			}
		}
		for _, d := range devices {
			if strings.ContainsAny(d, " \n") {
				t.Errorf("drives %q", d)
			}
		}
	})
}
