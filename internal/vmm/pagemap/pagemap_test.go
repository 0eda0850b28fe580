package pagemap

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

// TestDirtyWays compares the kernel's scan with the reading of every entry.
func TestDirtyWays(t *testing.T) {
	const size = 8 << 20
	f, err := os.CreateTemp(t.TempDir(), "memory")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	written := []int64{0, 1, 2, 500, 777, 2047}
	for _, n := range written {
		mem[n*pageSize+17] = 1
	}
	_ = mem[1000*pageSize] // read only: present, but the file's
	m, err := OfFile(os.Getpid(), f, size)
	if err != nil {
		t.Fatal(err)
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	read, scanned := new(block.Set), new(block.Set)
	if err := readPages(pagemap, m.regions[0], read); err != nil {
		t.Fatal(err)
	}
	if err := scanPages(pagemap, m.regions[0], scanned); errors.Is(err, errNoScan) {
		t.Log("this kernel has no PAGEMAP_SCAN: only one way to compare")
		scanned = read
	} else if err != nil {
		t.Fatal(err)
	}
	for n := range int64(size / pageSize) {
		want := false
		for _, w := range written {
			want = want || w == n
		}
		if read.Contains(n) != want || scanned.Contains(n) != want {
			t.Errorf("page %d: written %v, read %v, scanned %v", n, want, read.Contains(n), scanned.Contains(n))
		}
	}
	if _, err := OfFile(os.Getpid(), f, size*2); err == nil {
		t.Error("a mapping of the wrong size is found")
	}
}

// TestReplaced maps other memory over parts of a file's, as a VMM does with what its guest gives back.
func TestReplaced(t *testing.T) {
	const size = 1 << 20
	f, err := os.CreateTemp(t.TempDir(), "memory")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	m, err := OfFile(os.Getpid(), f, size)
	if err != nil {
		t.Fatal(err)
	}
	want := new(block.Set)
	for _, r := range [][2]int64{{0, 3}, {100, 1}, {200, 50}, {size/pageSize - 2, 2}} { // first and last pages among them
		p := mem[r[0]*pageSize : (r[0]+r[1])*pageSize]
		_, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		want.Add(r[0], r[1])
	}
	mem[150*pageSize] = 1
	want.Add(150, 1)
	got, err := m.Dirty()
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(size / pageSize) {
		if got.Contains(n) != want.Contains(n) {
			t.Errorf("page %d is dirty: %v, want %v", n, got.Contains(n), want.Contains(n))
		}
	}
}

// TestOfMark finds memory that the kernel has joined with its neighbour, whichever side that is on.
func TestOfMark(t *testing.T) {
	const size, other = 1 << 20, 256 << 10
	whole, err := unix.Mmap(-1, 0, size+2*other, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(whole)
	for _, cut := range []struct{ from, to int }{{0, size}, {other, size + other}, {0, size + other}, {0, size + 2*other}} {
		// What is outside of the cut can't be written, so that it is an area of its own.
		err := errors.Join(unix.Mprotect(whole, unix.PROT_READ), unix.Mprotect(whole[cut.from:cut.to], unix.PROT_READ|unix.PROT_WRITE))
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{cut.from, cut.to - size} {
			mark := []byte("a mark, and no other: " + t.Name())
			copy(whole[at+4096:], mark)
			m, err := OfMark(os.Getpid(), size, mark, 4096)
			if err != nil {
				t.Errorf("in %+v at %d: %v", cut, at, err)
			} else if m.regions[0].addr != uint64(uintptr(unsafe.Pointer(&whole[at]))) {
				t.Errorf("in %+v at %d: found at %x", cut, at, m.regions[0].addr)
			}
			clear(whole[at+4096 : at+4096+len(mark)])
		}
	}
	if _, err := OfMark(os.Getpid(), size, []byte("a mark that is nowhere in this"+" process but here"), 4096); err == nil {
		t.Error("a mark that is not there is found")
	}
}

// TestReadBounds reads at the edges of memory that is in two pieces, and past them.
func TestReadBounds(t *testing.T) {
	a, b := []byte("first piece "), []byte("and second")
	m := &Memory{pid: os.Getpid(), size: int64(len(a) + len(b)), regions: []region{
		{addr: uint64(uintptr(unsafe.Pointer(&a[0]))), size: int64(len(a))},
		{addr: uint64(uintptr(unsafe.Pointer(&b[0]))), offset: int64(len(a)), size: int64(len(b))},
	}}
	text := string(a) + string(b)
	for from := range len(text) + 1 {
		for to := from; to <= len(text); to++ {
			p := make([]byte, to-from)
			if err := m.Read(p, int64(from)); err != nil || string(p) != text[from:to] {
				t.Fatalf("%d to %d: %q, %v", from, to, p, err)
			}
		}
	}
	for _, c := range []struct{ n, off int64 }{{1, int64(len(text))}, {1, -1}, {int64(len(text)) + 1, 0}, {1, 1 << 62}} {
		if err := m.Read(make([]byte, c.n), c.off); err == nil {
			t.Errorf("%d bytes at %d are read", c.n, c.off)
		}
	}
}

func FuzzParseArea(f *testing.F) {
	f.Add("7fc0a8000000-7fc0ac000000 rw-p 00000000 fe:00 942097                     /var/mem")
	f.Add("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]")
	f.Add("2-1 r 0 0 0")
	f.Fuzz(func(t *testing.T, line string) {
		if a, ok := parseArea(line); ok && (a.end <= a.start || a.offset < 0) {
			t.Errorf("%q is read as %+v", line, a)
		}
	})
}
