package cage

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestCage checks what a VMM is born with: an ordinary user's identity, no way to more, and no descriptor that it was not handed.
func TestCage(t *testing.T) {
	// A descriptor as a careless parent leaves it: without close-on-exec.
	leak, err := unix.Open("/dev/zero", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	cmd := exec.Command("/bin/sh", "-c", "cat /proc/self/status; ls -l /proc/self/fd; fallocate -l 1M /proc/self/fd/3 && echo fallocate did nothing; cat >/dev/null")
	file, err := MemoryFile("file", nil)
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
	wait, err := launch(cmd, Options{User: Unprivileged()})
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
		want = append(want, fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d", User), "CapEff:\t0000000000000000")
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

// TestPagedCage has a caged process advise the kernel to read a file in huge pages, as QEMU does: it succeeds, and the kernel hears nothing of it where
// memory is paged.
func TestPagedCage(t *testing.T) {
	for _, paged := range []bool{false, true} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), adviseEnv+"=1")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		wait, err := launch(cmd, Options{User: Unprivileged(), Paged: paged})
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
const adviseEnv = "SPORE_CAGE_TEST_ADVISE"

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
