package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/vmm"
)

// TestDiskAsFile writes to a disk that is shown as a file, as a VMM does: by a process of its own that opens the descriptor which it was born with.
func TestDiskAsFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	base := zeroDisk(t, 1<<20)
	d, file, err := newDisk(base, base, t.TempDir(), true, func(err error) { t.Errorf("the disk failed: %v", err) })
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, os.ErrNotExist) {
		t.Skipf("FUSE can't be used here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	guest := func(script string) string {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.ExtraFiles = []*os.File{file}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	guest("printf first | dd of=/proc/self/fd/3 bs=1 seek=8192 conv=notrunc status=none")
	if err := d.freeze(); err != nil {
		t.Fatal(err)
	}
	guest("printf second | dd of=/proc/self/fd/3 bs=1 seek=8192 conv=notrunc status=none")
	if got := guest("dd if=/proc/self/fd/3 bs=1 skip=8192 count=6 status=none"); got != "second" {
		t.Errorf("the disk reads %q", got)
	}
	frozen := make([]byte, 6)
	if _, err := d.frozen[0].ReadAt(frozen, 8192); err != nil || !bytes.Equal(frozen, []byte("first\x00")) {
		t.Errorf("what was frozen reads %q (%v)", frozen, err)
	}
	if dirty := d.frozen[0].Dirty(); dirty.Len() != 1 || !dirty.Contains(2) {
		t.Errorf("%d blocks are dirty", dirty.Len())
	}
	if err := d.firstFault(); err != nil {
		t.Error(err)
	}
	file.Close()
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

// zeroDisk is a snapshot's disk of size zeros.
func zeroDisk(t *testing.T, size int64) *block.Reader {
	t.Helper()
	h, _, err := block.NewWriter(io.Discard, uuid.New(), block.WriterOptions{Size: size}).Finish(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := block.NewReader("disk", h, noLayers{})
	t.Cleanup(func() { r.Close() })
	return r
}

type noLayers struct{}

func (noLayers) Layer(context.Context, uuid.UUID) (io.ReaderAt, error) { return nil, os.ErrNotExist }

// badDisk is a disk that can't be read.
type badDisk struct{ expose.Disk }

func (badDisk) Size() int64                            { return 1 << 20 }
func (badDisk) ReadAt([]byte, int64) (int, error)      { return 0, errors.New("no such frame") }
func (badDisk) Zero(_, _ int64, _ bool) error          { return nil }
func (badDisk) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// TestDiskFileTells checks that the owner of a disk hears of its first failure, once.
func TestDiskFileTells(t *testing.T) {
	told := make(chan error, 8)
	w := &watched{Disk: badDisk{}, faulted: func(err error) { told <- err }}
	if _, err := w.WriteAt(make([]byte, 10), 0); err != nil || w.fault() != nil {
		t.Errorf("a write that succeeds: %v, %v", err, w.fault())
	}
	if _, err := w.ReadAt(make([]byte, 10), 1<<20); err == nil || w.fault() != nil {
		t.Errorf("a read past the end: %v, and the owner is told %v", err, w.fault())
	}
	for range 2 {
		if _, err := w.ReadAt(make([]byte, 10), 4096); err == nil {
			t.Error("a read that fails succeeds")
		}
	}
	var fault *expose.Fault
	if err := <-told; !errors.As(err, &fault) || fault.Op != "read" || fault.Offset != 4096 || fault.Length != 10 {
		t.Errorf("the owner is told %v", err)
	}
	if len(told) > 0 {
		t.Errorf("and is told again: %v", <-told)
	}
}

// TestEngineByName checks who runs what.
func TestEngineByName(t *testing.T) {
	var asked []string
	other := namedEngine{name: "other"}
	h := &Host{HostOptions{Engine: namedEngine{name: "own"}, Others: func(name, version string) (vmm.Engine, error) {
		asked = append(asked, name+" "+version)
		return other, nil
	}}}
	for _, c := range []struct{ name, version, want string }{{"", "", "own"}, {"own", "7", "own"}, {"other", "1.2.3", "other"}} {
		if e, err := h.engine(c.name, c.version); err != nil || e.Name() != c.want {
			t.Errorf("engine %q: %v, %v", c.name, e, err)
		}
	}
	if len(asked) != 1 || asked[0] != "other 1.2.3" {
		t.Errorf("others were asked for %q", asked)
	}
	h.Others = nil
	if _, err := h.engine("other", ""); err == nil {
		t.Error("an engine that is not there is found")
	}
}

type namedEngine struct {
	vmm.Engine
	name string
}

func (e namedEngine) Name() string { return e.name }
