package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestParseArgs(t *testing.T) {
	for line, want := range map[string]Args{
		"console=ttyS0 quiet\n":                          {Root: "/dev/vda", RootType: "ext4", Port: "agent"},
		"spore.root=none spore.port=other":               {RootType: "ext4", Port: "other"},
		"spore.ro spore.root=/dev/a spore.rotten":        {Root: "/dev/a", RootType: "ext4", Port: "agent", ReadOnly: true},
		"spore.root=/a spore.root=/b spore.roottype=xfs": {Root: "/b", RootType: "xfs", Port: "agent"},
	} {
		if got := parseArgs(line); got != want {
			t.Errorf("%q: %+v, want %+v", line, got, want)
		}
	}
	if _, err := readArgs(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing command line is read")
	}
}

// A kernel without modules has no list; one that names a module which is not there is an error that says so.
func TestLoadModules(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "list")
	if err := loadModules(list, dir); err != nil {
		t.Errorf("no list: %v", err)
	}
	if err := os.WriteFile(list, []byte("\nmissing.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := loadModules(list, dir); err == nil {
		t.Error("a module that is not there is loaded")
	}
	// Without the device nothing is loaded; the file goes all the same, for it takes memory.
	modules := filepath.Join(dir, "modules")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{list: "other.ko virtio:d0000ffffv*\n", modules + "/other.ko": "no module at all"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := loadModules(list, modules); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(modules); !os.IsNotExist(err) {
		t.Errorf("modules stay in memory: %v", err)
	}
}
