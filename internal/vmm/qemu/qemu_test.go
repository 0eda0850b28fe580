package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(adviseEnv) != "" {
		if err := advise(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestContract(t *testing.T) {
	engine := New(t.TempDir())
	t.Run("tcg", func(t *testing.T) { vmmtest.Run(t, engine, vmm.TCG) })
	t.Run("kvm", func(t *testing.T) {
		if s := engine.KVM(t.Context(), "amd64"); !s.Usable {
			t.Skipf("KVM runs no guests here: %s", s.Reason)
		}
		vmmtest.Run(t, engine, vmm.KVM)
	})
}

// TestProbeGuest proves the probe itself where KVM can't be had: software emulation must pass it.
func TestProbeGuest(t *testing.T) {
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if s := bootProbe(t.Context(), binary, vmm.TCG); !s.Usable {
		t.Errorf("the probe guest fails under emulation: %+v", s)
	}
	rom := probeGuest
	probeGuest = []byte{0xf4, 0xeb, 0xfd} // hlt; jmp back
	t.Cleanup(func() { probeGuest = rom })
	if s := bootProbe(t.Context(), binary, vmm.TCG); s.Usable || s.Reason == "" || s.Hint == "" {
		t.Errorf("a probe guest that only halts passes: %+v", s)
	}
}

func TestProbeGuestIsAssembledFromItsSource(t *testing.T) {
	object := filepath.Join(t.TempDir(), "guest.o")
	for _, args := range [][]string{
		{"as", "--64", "-o", object, "probe/guest.asm"},
		{"objcopy", "-O", "binary", "-j", ".text", object, object + ".bin"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	built, err := os.ReadFile(object + ".bin")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, probeGuest) {
		t.Error("probe/guest.bin is not what probe/guest.asm assembles to")
	}
}

func TestFactsAreKept(t *testing.T) {
	dir := t.TempDir()
	first, err := New(dir).facts(t.Context(), "qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if first.Version == "" || first.TSCKHz < 100_000 {
		t.Errorf("facts = %+v", first)
	}
	file := filepath.Join(dir, "probe-qemu-system-x86_64.json")
	kept, err := readFacts(file)
	if err != nil {
		t.Fatal(err)
	}
	kept.Version = "0.0.1"
	if err := writeFacts(file, kept); err != nil {
		t.Fatal(err)
	}
	if again, err := New(dir).facts(t.Context(), "qemu-system-x86_64"); err != nil || again.Version != "0.0.1" {
		t.Errorf("a second engine probed again: %+v, %v", again, err)
	}
	kept.Boot = "another boot"
	if err := writeFacts(file, kept); err != nil {
		t.Fatal(err)
	}
	if again, err := New(dir).facts(t.Context(), "qemu-system-x86_64"); err != nil || again.Version != first.Version {
		t.Errorf("facts of another boot are believed: %+v, %v", again, err)
	}
}

// TestCage checks what a VMM is born with: an ordinary user's identity, no way to more, and no descriptor that it was not handed.
func TestCage(t *testing.T) {
	// A descriptor as a careless parent leaves it: without close-on-exec.
	leak, err := unix.Open("/dev/zero", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	cmd := exec.Command("/bin/sh", "-c", "cat /proc/self/status; ls -l /proc/self/fd; fallocate -l 1M /proc/self/fd/3 && echo fallocate did nothing; cat >/dev/null")
	file, err := memoryFile("file", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.ExtraFiles = []*os.File{file}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	wait, err := launch(cmd, false)
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := wait(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	text := out.String()
	want := []string{"NoNewPrivs:\t1", "Seccomp:\t2", "fallocate did nothing"}
	if os.Geteuid() == 0 {
		want = append(want, fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d", vmmUser), "CapEff:\t0000000000000000")
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("the caged process lacks %q", w)
		}
	}
	if info, err := file.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("the caged process could allocate: %v, %v", info.Size(), err)
	}
	if strings.Contains(text, "/dev/zero") {
		t.Error("a descriptor of ours has leaked into the process")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestPagedCage has a caged process advise the kernel to read a file in huge pages, as QEMU does: it succeeds, and the kernel hears nothing of it where
// memory is paged.
func TestPagedCage(t *testing.T) {
	for _, paged := range []bool{false, true} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), adviseEnv+"=1")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		wait, err := launch(cmd, paged)
		if err != nil {
			t.Fatal(err)
		}
		if err := wait(); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		if advised := strings.Contains(out.String(), " hg"); advised == paged {
			t.Errorf("paged is %v, and the kernel was advised: %v\n%s", paged, advised, out.String())
		}
	}
}

// adviseEnv makes the test binary a process that asks for huge pages, and prints the flags of its mapping.
const adviseEnv = "SPORE_QEMU_TEST_ADVISE"

func advise() error {
	p, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err == nil {
		err = unix.Madvise(p, unix.MADV_HUGEPAGE)
	}
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	start := fmt.Sprintf("%x-", uintptr(unsafe.Pointer(&p[0])))
	_, rest, _ := strings.Cut(string(maps), start) // not there when it was joined with a neighbour, as it is unless the kernel was advised
	_, flags, _ := strings.Cut(rest, "VmFlags:")
	flags, _, _ = strings.Cut(flags, "\n")
	fmt.Println(flags)
	return nil
}

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
	m, err := findMapping(os.Getpid(), f, size)
	if err != nil {
		t.Fatal(err)
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	read, err := readPages(pagemap, m)
	if err != nil {
		t.Fatal(err)
	}
	scanned, err := scanPages(pagemap, m)
	if errors.Is(err, errNoScan) {
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
	if _, err := findMapping(os.Getpid(), f, size*2); err == nil {
		t.Error("a mapping of the wrong size is found")
	}
}
