package expose_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/expose"
)

// stallingImage is the variable by which this program is told to be the one that mountAndStall describes.
const stallingImage = "SPORE_TEST_STALLING_IMAGE"

// mountAndStall mounts an image, and says so and answers no more once the kernel has begun to read it.
func mountAndStall(image, dir string) {
	f, err := os.Open(image)
	if err == nil {
		_, err = expose.MountDisk(context.Background(), &stalling{file: f}, dir, expose.MountOptions{Via: expose.ViaFUSE})
	}
	fmt.Println("mounted", err)
}

type stalling struct {
	file  *os.File
	once  sync.Once
	reads sync.Mutex
	count int
}

func (s *stalling) Size() int64 {
	st, err := s.file.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

func (s *stalling) ReadAt(p []byte, off int64) (int, error) {
	s.reads.Lock()
	s.count++
	count := s.count
	s.reads.Unlock()
	if count > 1 {
		s.once.Do(func() { fmt.Println("stalled") })
		select {}
	}
	return s.file.ReadAt(p, off)
}

// TestMountDies kills the process that serves a disk while the kernel mounts it: it ends, and so does the mount. It is a matter of who waits for whom.
func TestMountDies(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	for _, device := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(device); err != nil {
			t.Skipf("mounting takes %s: %v", device, err)
		}
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", image, "16M").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command("/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), stallingImage+"="+image)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	killed := cmd.Process.Kill()
	if line != "stalled\n" || killed != nil {
		t.Errorf("it says %q, %v", line, killed)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the process does not end")
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		mounts, err := os.ReadFile("/proc/mounts")
		if err == nil && !strings.Contains(string(mounts), dir) && !mounting(dir) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the mount is left over")
		}
	}
}

// mounting tells whether a program is still about to mount something on dir.
func mounting(dir string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		line, err := os.ReadFile(name)
		if path, rest, _ := strings.Cut(string(line), "\x00"); err == nil && filepath.Base(path) == "mount" && strings.Contains(rest, "\x00"+dir+"\x00") {
			return true
		}
	}
	return false
}
