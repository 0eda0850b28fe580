package expose

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memory is a base in memory.
type memory struct{ *bytes.Reader }

func (m memory) Size() int64 { return m.Reader.Size() }

func needFUSE(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("there is no FUSE here: %v", err)
	}
}

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// serve serves files whose descriptors are read by plain system calls, which Go's runtime does not wait for.
func serve(t testing.TB, files ...FUSEFile) *FUSEServer {
	t.Helper()
	needFUSE(t)
	s, err := ServeFUSE(files, nil)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skipf("FUSE can't be used here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		select {
		case <-s.Done():
		case <-time.After(time.Minute):
			t.Error("the file system is still there")
		}
	})
	return s
}

func TestFUSE(t *testing.T) {
	a, b := random(1, 5<<20+123), random(2, 1<<20)
	overlay, err := NewOverlay(memory{bytes.NewReader(bytes.Clone(b))}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	s := serve(t, FUSEFile{Name: "a", Base: memory{bytes.NewReader(a)}}, FUSEFile{Name: "b", Base: overlay, Writable: true})
	fd, ok := s.FD("a")
	if !ok {
		t.Fatal("no descriptor")
	}
	var st unix.Stat_t
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err := errors.Join(err, unix.Fstat(fd, &st)); err != nil {
		t.Fatal(err)
	}
	if dev := fmt.Sprintf(" %d:%d ", unix.Major(st.Dev), unix.Minor(st.Dev)); strings.Contains(string(mounts), dev) {
		t.Errorf("the mount is seen:\n%s", mounts)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 9))
			for range 50 {
				off := r.IntN(len(a))
				p := make([]byte, 1+r.IntN(300<<10))
				n, err := unix.Pread(fd, p, int64(off))
				if want := a[off:min(len(a), off+len(p))]; err != nil || !bytes.Equal(p[:n], want) {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
			}
		})
	}
	wg.Wait()
	if n, err := unix.Pwrite(fd, []byte("x"), 0); err == nil {
		t.Errorf("wrote %d bytes to what is read-only", n)
	}
	fd, _ = s.FD("b")
	if _, err := unix.Pwrite(fd, []byte("written"), 4090); err != nil {
		t.Fatal(err)
	}
	copy(b[4090:], "written")
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 4096); err != nil {
		t.Fatal(err)
	}
	clear(b[8192:12288])
	if err := unix.Fsync(fd); err != nil {
		t.Error(err)
	}
	got := make([]byte, len(b))
	if _, err := overlay.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the overlay has other bytes: %v", err)
	}
	if _, ok := s.FD("c"); ok {
		t.Error("a file that is not there has a descriptor")
	}
}

// asked is a base that keeps account of what it is asked for.
type asked struct {
	memory
	mu sync.Mutex
	at map[int64]int // lengths by offsets
}

func (a *asked) ReadAt(p []byte, off int64) (int, error) {
	a.mu.Lock()
	a.at[off] = len(p)
	a.mu.Unlock()
	return a.memory.ReadAt(p, off)
}

// TestFUSEPaged reads pages of a file that is memory: the kernel asks for them and for no others, and not for those that it was given.
func TestFUSEPaged(t *testing.T) {
	const page = 4096
	data := random(4, 1<<20)
	base := &asked{memory: memory{bytes.NewReader(data)}, at: map[int64]int{}}
	s := serve(t, FUSEFile{Name: "memory", Base: base, Paged: true})
	fd, _ := s.FD("memory")
	if err := s.Store("memory", 20*page, data[20*page:60*page]); err != nil {
		t.Fatal(err)
	}
	if err := s.Store("nothing", 0, data[:page]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stored in no file: %v", err)
	}
	for _, at := range []int64{5, 6, 7, 100, 30, 59, 60, 200, 5} {
		p := make([]byte, page)
		if n, err := unix.Pread(fd, p, at*page); n != page || err != nil || !bytes.Equal(p, data[at*page:(at+1)*page]) {
			t.Errorf("page %d: %d bytes, %v", at, n, err)
		}
	}
	base.mu.Lock()
	defer base.mu.Unlock()
	for _, at := range []int64{5, 6, 7, 100, 60, 200} {
		if base.at[at*page] != page {
			t.Errorf("page %d was asked for with %d bytes", at, base.at[at*page])
		}
		delete(base.at, at*page)
	}
	if len(base.at) > 0 {
		t.Errorf("asked for, too: %v", base.at)
	}
	var a, b unix.Stat_t
	other := serve(t, FUSEFile{Name: "memory", Base: base, Paged: true})
	otherFD, _ := other.FD("memory")
	if err := errors.Join(unix.Fstat(fd, &a), unix.Fstat(otherFD, &b)); err != nil || a.Ino == b.Ino {
		t.Errorf("two files have the inode numbers %d and %d, %v", a.Ino, b.Ino, err)
	}
}

// broken is a base that can't be read.
type broken struct{ memory }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("damaged") }

func TestFUSEFault(t *testing.T) {
	s := serve(t, FUSEFile{Name: "a", Base: broken{memory{bytes.NewReader(make([]byte, 1<<20))}}})
	fd, _ := s.FD("a")
	if n, err := unix.Pread(fd, make([]byte, 100), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("read %d bytes of a damaged disk: %v", n, err)
	}
	if _, err := ServeFUSE([]FUSEFile{{Name: "a", Base: memory{bytes.NewReader(nil)}, Writable: true}}, nil); err == nil {
		t.Error("served what can't be written to as writable")
	}
}

// TestLoop makes devices of files again and again: none is left over.
func TestLoop(t *testing.T) {
	data := random(3, 1<<20)
	s := serve(t, FUSEFile{Name: "a", Base: memory{bytes.NewReader(data)}})
	fd, _ := s.FD("a")
	for range 20 {
		device, err := AttachLoop(fd, false)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(data))
		if _, err := unix.Pread(int(device.Fd()), got, 0); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("the device reads other bytes: %v", err)
		}
		name := filepath.Base(device.Name())
		backing := "/sys/block/" + name + "/loop/backing_file"
		ours, err := os.ReadFile(backing)
		if err != nil {
			t.Fatal(err)
		}
		device.Close()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if now, err := os.ReadFile(backing); err != nil || !bytes.Equal(now, ours) { // others may have the device by now
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is left over", name)
			}
		}
	}
}
