package e2e

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// TestMountByNBD mounts a snapshot's disk by the kernel's own NBD client, which few hosts have: in a guest, whose kernel has it. What is done there is in
// testdata/mountbynbd.sh.
func TestMountByNBD(t *testing.T) {
	kernel, err := guest.FindKernel(guest.KernelsDir(os.Getenv), "", runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile(filepath.Join(kernel.ModulesDir, "nbd.ko"))
	if err != nil {
		t.Skipf("the guests' kernel has no NBD module (scripts/kernel adds it): %v", err)
	}
	bin := filepath.Join(built(t), "spore")
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := makeImage(image); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mount", "umount", "mke2fs", "e2fsck"} { // busybox's own have other ways
		addProgram(t, image, name)
	}
	script, err := os.ReadFile("testdata/mountbynbd.sh")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"bin/spore": program, "bin/mountbynbd": script, "nbd.ko": module, "sums": makeDisk(t, filepath.Join(image, "store"))} {
		if err := os.WriteFile(filepath.Join(image, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run, err := os.MkdirTemp("", "spore-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	cmd := exec.CommandContext(t.Context(), bin, "run", "--alone", "dir:"+image, "--", "mountbynbd")
	cmd.Env = append(os.Environ(), "SPORE_STORE="+filepath.Join(dir, "store"), "SNAPSHOT_CACHE_DIR="+filepath.Join(dir, "cache"), "SANDBOX_DIR="+run)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.HasSuffix(out, []byte("all is well\n")) {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// addProgram copies a program of this machine, and the libraries that it takes, into an image.
func addProgram(t *testing.T, image, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		t.Fatalf("%v (`make deps` installs it)", err)
	}
	libraries, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", path, err)
	}
	to := filepath.Join(image, "bin", name)
	if err := os.Remove(to); err != nil && !os.IsNotExist(err) { // busybox's
		t.Fatal(err)
	}
	files := map[string]string{to: path}
	for _, library := range regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1) {
		files[filepath.Join(image, library)] = library
	}
	for to, from := range files {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// makeDisk makes a store of one snapshot, tagged disk, whose disk is an ext4 file system, and returns the sums of its files as md5sum prints them.
func makeDisk(t *testing.T, dir string) (sums []byte) {
	t.Helper()
	scratch := t.TempDir()
	tree, image := filepath.Join(scratch, "tree"), filepath.Join(scratch, "disk")
	random := rand.NewChaCha8([32]byte{1})
	for i, size := range []int{0, 1, 5000, 1 << 20, 6 << 20} {
		name := filepath.Join("dir", fmt.Sprint(i))
		data := make([]byte, size)
		_, _ = random.Read(data)
		if err := os.MkdirAll(filepath.Join(tree, "dir"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
		sums = fmt.Appendf(sums, "%x  /mnt/%s\n", md5.Sum(data), name)
	}
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image, "24M").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := snapshot.Open(st, filepath.Join(scratch, "cache"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	d, err := repo.NewDraft(ctx, uuid.New(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort()
	w, err := d.Disk(int64(len(data)))
	if err == nil {
		err = w.Write(0, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Commit(ctx, snapshot.Metadata{Kind: snapshot.KindMachine, Arch: runtime.GOARCH})
	if err == nil {
		err = repo.Tag(ctx, "disk", s.ID())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return sums
}
