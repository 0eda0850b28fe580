package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cache is a directory of finished file systems, of locks by which builders
// take turns, and of work in progress.
//
// Work in progress is a folder that its maker holds a lock on, so that what a
// killed process left behind can be told from what is alive.
type cache struct {
	dir string
}

func newCache(dir string) (*cache, error) {
	c := &cache{dir: dir}
	return c, c.sweep()
}

// lay makes the directories, which may be gone again at any time.
func (c *cache) lay() error {
	for _, sub := range []string{"ext4", "locks", "memos", "tmp"} {
		if err := os.MkdirAll(filepath.Join(c.dir, sub), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// lock waits until nobody else holds name, in this process or another.
func (c *cache) lock(ctx context.Context, name string, waiting func()) (unlock func(), err error) {
	if err := c.lay(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.dir, "locks", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("taking the lock of the image: %w", err)
	}
	// The kernel can't be told to give up waiting for a file lock, so ask
	// now and then.
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("taking the lock of the image: %w", err)
		}
		waiting()
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another build of the image: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// temp returns a new folder for work in progress, and what removes it.
func (c *cache) temp() (dir string, remove func(), err error) {
	unlock, err := c.lock(context.Background(), "tmp", func() {})
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	dir, err = os.MkdirTemp(filepath.Join(c.dir, "tmp"), "build-")
	if err != nil {
		return "", nil, err
	}
	f, err := os.Open(dir)
	if err == nil {
		err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		f.Close()
		os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, func() {
		removeTree(dir)
		f.Close()
	}, nil
}

// sweep removes what builders left that are no more.
func (c *cache) sweep() error {
	unlock, err := c.lock(context.Background(), "tmp", func() {})
	if err != nil {
		return err
	}
	defer unlock()
	dirs, err := filepath.Glob(filepath.Join(c.dir, "tmp", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			continue // gone meanwhile
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = removeTree(dir)
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("removing what a build left behind: %w", err)
		}
	}
	return nil
}

// octal undoes how the kernel spells blanks in paths.
var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// removeTree removes a folder of work in progress. What may be mounted in it
// belongs to somebody else, so that goes first: removing would reach into it.
func removeTree(dir string) error {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	var mounts []string
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if at := octal.Replace(f[4]); strings.HasPrefix(at, real+"/") {
			mounts = append(mounts, at)
		}
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting %s: %w", m, err)
		}
	}
	return os.RemoveAll(dir)
}

// remember keeps a small value under a name.
func (c *cache) remember(name string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	dir, remove, err := c.temp()
	if err != nil {
		return err
	}
	defer remove()
	temp := filepath.Join(dir, "memo")
	if err := os.WriteFile(temp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(c.dir, "memos", name))
}

// recall fills value with what was kept under name, if that is not older than most.
func (c *cache) recall(name string, most time.Duration, value any) bool {
	path := filepath.Join(c.dir, "memos", name)
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	if age := time.Since(info.ModTime()); age < 0 || age > most {
		return false
	}
	raw, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(raw, value) == nil
}

// forget drops what was kept under name.
func (c *cache) forget(name string) {
	os.Remove(filepath.Join(c.dir, "memos", name))
}

// publish moves a finished file into the cache. Whoever finds it there finds
// all of it, even after a crash.
func (c *cache) publish(f *os.File, path string) error {
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
