package expose_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

// listen serves disk on a unix socket until the test ends and returns its NBD URI.
func listen(t testing.TB, server *expose.NBDServer, export string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nbd")
	listener, err := expose.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("serving: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return "nbd+unix:///" + export + "?socket=" + path
}

// tool runs one of QEMU's tools and returns all that it prints.
func tool(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIP: no %s here: install qemu-utils", name)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	return string(out), err
}

// qemuIO runs commands of qemu-io and fails the test if one fails.
func qemuIO(t testing.TB, uri string, commands ...string) string {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := tool(t, "qemu-io", append(args, uri)...)
	if err != nil || strings.Contains(out, "failed") {
		t.Fatalf("qemu-io %q: %v\n%s", commands, err, out)
	}
	return out
}

func TestQEMUListsTheExport(t *testing.T) {
	uri := listen(t, expose.NewNBDServer(exposetest.Overlay(t, exposetest.Random(1, 8<<20)), expose.NBDOptions{Name: "root"}), "root")
	out, err := tool(t, "qemu-nbd", "--list", "-k", uri[strings.Index(uri, "=")+1:])
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, line := range []string{"exports available: 1", "export: 'root'", "size:  8388608", "min block: 512", "opt block: 4096", "max block: 33554432",
		"flush fua trim zeroes df multi fast-zero", "base:allocation"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), strings.Join(strings.Fields(line), " ")) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
}

func TestQEMUReadsAndWrites(t *testing.T) {
	content := exposetest.Random(2, 48<<20)
	disk := exposetest.Overlay(t, content)
	server := expose.NewNBDServer(disk, expose.NBDOptions{})
	uri := listen(t, server, "")
	qemuIO(t, uri,
		"write -P 0x11 0 4k",
		"write -P 0x22 512 512",
		"write -f -P 0x33 1M 40M", // QEMU cuts it to the limit; FUA
		"write -P 0x44 6291455 2",
		"write -z 2M 1M",
		"write -z -u 4M 1M",
		"discard 43M 1M",
		"flush",
		"aio_write -P 0x55 45M 64k", "aio_write -P 0x66 46M 64k", "aio_flush",
		"read -P 0x11 0 512", "read -P 0x22 512 512", "read -P 0x11 1k 3k",
		"read -P 0 2M 1M", "read -P 0 4M 1M", "read -P 0 43M 1M",
	)
	fill := func(b byte, offset, length int) { copy(content[offset:], bytes.Repeat([]byte{b}, length)) }
	fill(0x11, 0, 4096)
	fill(0x22, 512, 512)
	fill(0x33, 1<<20, 40<<20)
	fill(0x44, 6291455, 2)
	fill(0, 2<<20, 1<<20)
	fill(0, 4<<20, 1<<20)
	fill(0, 43<<20, 1<<20)
	fill(0x55, 45<<20, 64<<10)
	fill(0x66, 46<<20, 64<<10)
	got := make([]byte, len(content))
	if _, err := disk.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("the disk does not hold what QEMU wrote")
	}
	if f := server.Fault(); f != nil {
		t.Error(f)
	}
}

func TestQEMUMapsHoles(t *testing.T) {
	disk := exposetest.Overlay(t, bytes.Repeat([]byte{1}, 8<<20))
	uri := listen(t, expose.NewNBDServer(disk, expose.NBDOptions{}), "")
	qemuIO(t, uri, "write -z -u 1M 2M", "discard 5M 1M", "write -P 7 2M 4k")
	out, err := tool(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatal(err)
	}
	type hole struct{ start, end int64 }
	var holes []hole
	for _, e := range extents {
		if e.Zero != !e.Data {
			t.Errorf("%+v is neither a hole nor data", e)
		}
		if e.Zero {
			holes = append(holes, hole{e.Start, e.Start + e.Length})
		}
	}
	want := []hole{{1 << 20, 2 << 20}, {2<<20 + 4096, 3 << 20}, {5 << 20, 6 << 20}}
	if len(holes) != len(want) {
		t.Fatalf("holes %v, want %v", holes, want)
	}
	for i := range want {
		if holes[i] != want[i] {
			t.Errorf("hole %v, want %v", holes[i], want[i])
		}
	}
}

func TestQEMUConverts(t *testing.T) {
	content := exposetest.Random(3, 40<<20)
	clear(content[8<<20 : 24<<20])
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := exposetest.Overlay(t, make([]byte, len(content)))
	uri := listen(t, expose.NewNBDServer(disk, expose.NBDOptions{}), "")
	if out, err := tool(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", image, uri); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// And on, through the other direction.
	back := filepath.Join(dir, "back")
	if out, err := tool(t, "qemu-img", "convert", "-W", "-m", "8", "-f", "raw", "-O", "raw", uri, back); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("what came back differs")
	}
}

func TestQEMUSeesErrors(t *testing.T) {
	faulty := &exposetest.Faulty{Disk: exposetest.Overlay(t, exposetest.Random(5, 8<<20))}
	server := expose.NewNBDServer(faulty, expose.NBDOptions{})
	uri := listen(t, server, "")
	for _, c := range []struct {
		op, command string
		err         error
		says        string
	}{
		{"read", "read 1M 4k", errors.New("frame 16 is corrupt"), "Input/output error"},
		{"write", "write 1M 4k", unix.ENOSPC, "No space left on device"},
		{"zero", "write -z 1M 4k", unix.ENOSPC, "No space left on device"},
		{"write", "write 1M 4k", expose.ErrFrozen, "Operation not permitted"},
	} {
		faulty.Fail(func(op string, _, _ int64) error {
			if op == c.op {
				return c.err
			}
			return nil
		})
		out, _ := tool(t, "qemu-io", "-f", "raw", "-c", c.command, uri)
		if !strings.Contains(out, c.says) {
			t.Errorf("%s with %v: no %q in\n%s", c.command, c.err, c.says, out)
		}
		faulty.Fail(nil)
	}
	// A flush without a write before it never leaves QEMU, and one that fails shows only in the exit code.
	faulty.Fail(func(op string, _, _ int64) error {
		if op == "flush" {
			return unix.EIO
		}
		return nil
	})
	if out, err := tool(t, "qemu-io", "-f", "raw", "-c", "write -f 2M 4k", uri); err == nil || !strings.Contains(out, "Input/output error") {
		t.Errorf("write through: %v\n%s", err, out)
	}
	if out, err := tool(t, "qemu-io", "-t", "writeback", "-f", "raw", "-c", "write 2M 4k", "-c", "flush", uri); err == nil || !strings.Contains(out, "wrote 4096/4096") {
		t.Errorf("flush: %v\n%s", err, out)
	}
	if f := server.Fault(); f == nil || f.Op != "read" || f.Offset != 1<<20 || !strings.Contains(f.Error(), "frame 16 is corrupt") {
		t.Errorf("the first fault is %v", f)
	}
}

func TestQEMUCantWriteReadOnly(t *testing.T) {
	uri := listen(t, expose.NewNBDServer(exposetest.Overlay(t, exposetest.Random(6, 1<<20)), expose.NBDOptions{ReadOnly: true}), "")
	if out, err := tool(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", uri); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("writing: %v\n%s", err, out)
	}
	if out, err := tool(t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", uri); err != nil {
		t.Errorf("reading: %v\n%s", err, out)
	}
}

// TestQEMUByDescriptor connects as a VMM that is given its disk as an open socket.
func TestQEMUByDescriptor(t *testing.T) {
	disk := exposetest.Overlay(t, exposetest.Random(7, 1<<20))
	ours, theirs, err := expose.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- expose.NewNBDServer(disk, expose.NBDOptions{}).ServeConn(t.Context(), ours) }()
	path, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("SKIP: no qemu-io here: install qemu-utils")
	}
	cmd := exec.CommandContext(t.Context(), path, "--image-opts", "-c", "write -P 9 4k 4k", "driver=nbd,server.type=fd,server.str=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	got := make([]byte, 4096)
	if _, err := disk.ReadAt(got, 4096); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{9}, 4096)) {
		t.Errorf("%x…, %v", got[:4], err)
	}
}
