package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/snapshot"
)

// mount compares reading a file through `spore mount` with reading it through the loop-mounted flat image, both with nothing in the page cache.
func (s *dataSuite) mount(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return nil // mounting takes root; the report has no fuse_read_over_loop then
	}
	repo, root, err := s.newStore("mount")
	if err != nil {
		return err
	}
	image := filepath.Join(s.scratch, "image")
	snap, err := s.diskOfOneFile(ctx, repo, image)
	if err != nil {
		return err
	}
	defer snap.Close()
	ours, theirs := filepath.Join(s.scratch, "fuse"), filepath.Join(s.scratch, "loop")
	for _, dir := range []string{ours, theirs} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	unmount, err := loopMount(image, theirs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	end, err := sporeMount(ctx, root, snap.ID(), ours)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	var took [2][]time.Duration
	for range s.Iterations {
		for i, dir := range []string{ours, theirs} {
			if err := dropCaches(); err != nil {
				return err
			}
			begin := time.Now()
			if err := readThrough(ctx, filepath.Join(dir, "file")); err != nil {
				return err
			}
			took[i] = append(took[i], time.Since(begin))
		}
	}
	s.compareSpeed("fuse_read_over_loop", "fuse_read", "loop_read", dataBytes, took[0], took[1])
	return nil
}

// diskOfOneFile makes a snapshot whose disk holds one large file, and the same disk as a flat file.
func (s *dataSuite) diskOfOneFile(ctx context.Context, repo *snapshot.Repo, image string) (*snapshot.Snapshot, error) {
	tree := filepath.Join(s.scratch, "tree")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(tree)
	script := fmt.Sprintf("head -c %d /dev/urandom >%s/file && mke2fs -q -F -t ext4 -b 4096 -O ^has_journal -d %s %s %d", int64(dataBytes), tree, tree, image, (dataBytes+(64<<20))>>10)
	if out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("making a disk: %w: %s", err, out)
	}
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d, err := repo.NewDraft(ctx, uuid.New(), nil)
	if err != nil {
		return nil, err
	}
	defer d.Abort()
	w, err := d.Disk(st.Size())
	if err != nil {
		return nil, err
	}
	if err := copyInto(w, f, st.Size()); err != nil {
		return nil, err
	}
	return d.Commit(ctx, snapshot.Metadata{Kind: snapshot.KindMachine, Arch: "amd64"})
}

func copyInto(w *block.Writer, r io.ReaderAt, size int64) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		if _, err := r.ReadAt(p, off); err != nil {
			return err
		}
		if err := w.Write(off, p); err != nil {
			return err
		}
	}
	return nil
}

// loopMount mounts a flat image.
func loopMount(image, dir string) (unmount func() error, err error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	device, err := expose.AttachLoop(int(f.Fd()), false)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	if err := unix.Mount(device.Name(), dir, "ext4", unix.MS_RDONLY, ""); err != nil {
		return nil, fmt.Errorf("mounting %s: %w", image, err)
	}
	return func() error { return unix.Unmount(dir, 0) }, nil
}

// sporeMount mounts a snapshot's disk as a user does, by FUSE.
func sporeMount(ctx context.Context, root string, id uuid.UUID, dir string) (end func() error, err error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "mount", id.String(), dir, "--via", "fuse", "--store", root, "--quiet")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	end = func() error { return errors.Join(cmd.Process.Signal(syscall.SIGINT), cmd.Wait()) }
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it prints the folder once it is mounted
		return nil, errors.Join(errors.New("spore mount did not mount"), end())
	}
	return end, nil
}

// readThrough reads a file from start to end.
func readThrough(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		k, err := f.Read(buf)
		n += int64(k)
		if err == io.EOF && n == dataBytes {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading %s, after %d bytes: %w", path, n, err)
		}
	}
}

// dropCaches empties the page cache.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
