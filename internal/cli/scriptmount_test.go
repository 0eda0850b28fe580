package cli

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// mountable tells whether disks can be mounted here: as root, with FUSE and loop devices.
func mountable() bool {
	s, err := expose.ServeFUSE([]expose.FUSEFile{{Name: "probe", Base: expose.Zeros(1 << 20)}}, nil)
	if err != nil {
		return false
	}
	defer s.Close()
	fd, _ := s.FD("probe")
	device, err := expose.AttachLoop(fd, false)
	if err != nil {
		return false
	}
	device.Close()
	return true
}

// patience is how long a script waits for what must happen.
const patience = time.Minute

// cmdMkfs makes a snapshot, named disk, whose disk is a real file system: mkfs
func cmdMkfs(ts *testscript.TestScript, neg bool, args []string) {
	root, image := ts.MkAbs("tree"), ts.MkAbs("image")
	ts.Check(os.MkdirAll(filepath.Join(root, "dir"), 0o755))
	ts.Check(os.WriteFile(filepath.Join(root, "dir", "file"), []byte("content\n"), 0o644))
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^has_journal", "-d", root, image, "8M").CombinedOutput(); err != nil {
		ts.Fatalf("mke2fs: %v\n%s", err, out)
	}
	data, err := os.ReadFile(image)
	ts.Check(err)
	st, err := store.OpenDir(ts.Getenv("SPORE_STORE"))
	ts.Check(err)
	repo, err := snapshot.Open(st, ts.MkAbs("cache"))
	ts.Check(err)
	ctx := context.Background()
	id := uuid.MustParse("55555555-5555-4555-8555-555555555555")
	d, err := repo.NewDraft(ctx, id, nil)
	ts.Check(err)
	defer d.Abort()
	w, err := d.Disk(int64(len(data)))
	ts.Check(err)
	ts.Check(w.Write(0, data))
	s, err := d.Commit(ctx, snapshot.Metadata{Kind: snapshot.KindMachine, Arch: "amd64"})
	ts.Check(err)
	ts.Check(repo.Tag(ctx, "disk", id))
	ts.Check(s.Close())
}

// device returns what is mounted on a folder.
func device(dir string) (string, bool) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == dir {
			return fields[0], true
		}
	}
	return "", false
}

// wait waits until f is so.
func wait(ts *testscript.TestScript, what string, f func() bool) {
	for deadline := time.Now().Add(patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("not so within %v: %s", patience, what)
		}
	}
}

// cmdUntil waits for a mount, or for a whole line in a file: until mounted DIR, until line FILE. The kernel shows a mount before spore tells of it.
func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || args[0] != "mounted" && args[0] != "line" {
		ts.Fatalf("usage: until mounted DIR, or until line FILE")
	}
	wait(ts, strings.Join(args, " "), func() bool {
		if args[0] == "mounted" {
			_, mounted := device(ts.MkAbs(args[1]))
			return mounted
		}
		text, _ := os.ReadFile(ts.MkAbs(args[1]))
		return strings.HasSuffix(string(text), "\n")
	})
}

// cmdGone wants a mount, its device and the process that served it to go away: gone DIR
func cmdGone(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	wait(ts, "the mount and its process are gone", func() bool {
		_, mounted := device(dir)
		return !mounted && len(servers(dir)) == 0
	})
}

// servers returns the processes that serve a mount of this script: those that have its folder for theirs.
func servers(dir string) (pids []int) {
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range found {
		args, err := os.ReadFile(name)
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(name), "cwd"))
		if err == nil && strings.Contains(string(args), "\x00serve-mount\x00") && cwd == filepath.Dir(dir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// cmdKillServer kills the process that serves a mount: killserver DIR
func cmdKillServer(ts *testscript.TestScript, neg bool, args []string) {
	for _, pid := range servers(ts.MkAbs(args[0])) {
		ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	}
}
