package pagemap

import (
	"errors"
	"os"
	"testing"

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
