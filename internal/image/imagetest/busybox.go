// Package imagetest makes images for tests.
package imagetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Busybox makes a folder that is an image: busybox under all its names.
func Busybox(root string) error {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return errors.New("busybox is not installed: run make deps")
	}
	for _, dir := range []string{"bin", "tmp", "etc", "root"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if out, err := exec.Command("cp", program, filepath.Join(root, "bin/busybox")).CombinedOutput(); err != nil {
		return fmt.Errorf("copying busybox: %w: %s", err, out)
	}
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				return err
			}
		}
	}
	return os.Chmod(root, 0o755)
}
