package cage

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

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
	wait, err := launch(cmd, Unprivileged(), "")
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
