package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// linked returns a host on a store that shares all files with the lab's, and on a cache of its own.
func linked(t *testing.T) bench {
	t.Helper()
	lab.need(t)
	root := filepath.Join(t.TempDir(), "store")
	for _, id := range shared(t, nil).ids(t) {
		from, to := filepath.Join(lab.store(), id.String()), filepath.Join(root, id.String())
		if err := os.MkdirAll(to, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range entries(t, from) {
			if err := os.Link(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return newBench(t, root, filepath.Join(t.TempDir(), "cache"), nil)
}

// damage exchanges a file for a damaged copy: others may have the same file under another name.
func damage(t *testing.T, path string, how func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, how(data), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(p []byte) []byte {
		p[(at+len(p))%len(p)] ^= 0x10
		return p
	}
}

// TestDamagedSnapshot damages each artifact of a snapshot and wakes it: no machine is left, and the error names what is damaged.
func TestDamagedSnapshot(t *testing.T) {
	half := func(p []byte) []byte { return p[:len(p)/2] }
	for _, c := range []struct {
		artifact, name string
		how            func([]byte) []byte
	}{
		{snapshot.MetadataFile, "a flipped bit", flip(200)},
		{snapshot.MetadataFile, "cut", half},
		{snapshot.MemoryHeader, "a flipped bit", flip(-40)},
		{snapshot.DiskHeader, "cut", half},
		{snapshot.StateFile, "a flipped bit", flip(5000)},
		{snapshot.StateFile, "cut", half},
		{snapshot.MemoryFile, "a flipped bit", flip(-1)},
		{snapshot.MemoryFile, "cut", half},
	} {
		t.Run(c.artifact+" "+c.name, func(t *testing.T) {
			b := linked(t)
			damage(t, filepath.Join(b.store, lab.template.String(), c.artifact), c.how)
			b.leavesNothing(t, func() {
				err := b.tryResume(t, lab.template)
				if err == nil {
					t.Fatal("it wakes")
				}
				var artifact *snapshot.CorruptError
				var frame *block.CorruptError
				if !errors.As(err, &artifact) && !errors.As(err, &frame) {
					t.Errorf("the error is of no type: %v", err)
				}
				for _, want := range []string{lab.template.String(), c.artifact} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("the error does not name %s: %v", want, err)
					}
				}
				if frame != nil && !strings.Contains(err.Error(), fmt.Sprint("frame ", frame.Frame)) {
					t.Errorf("the error does not name frame %d: %v", frame.Frame, err)
				}
			})
		})
	}
}

func (b bench) tryResume(t *testing.T, id uuid.UUID) error {
	t.Helper()
	snap, err := b.Snapshots.OpenID(t.Context(), id)
	if err != nil {
		return err
	}
	defer snap.Close()
	s, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
	if err == nil {
		s.Close()
	}
	return err
}

// TestDamagedLate damages a part of the disk that is read only when a process of the woken machine asks for it. The machine is ended: it must not go on
// with an error that it may take for something else.
func TestDamagedLate(t *testing.T) {
	b := linked(t)
	layer := uuid.Nil
	for _, id := range b.ids(t) {
		path := filepath.Join(b.store, id.String(), snapshot.DiskFile)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(data, []byte(marker)); at >= 0 && id != lab.template {
			damage(t, path, flip(at+100))
			layer = id
		}
	}
	if layer == uuid.Nil {
		t.Fatal("the file is in no layer")
	}
	b.leavesNothing(t, func() {
		snap := b.open(t, lab.template)
		s, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { snap.Close() }()
		defer s.Close()
		output(t, s, "true")
		reading := errOf(try(t.Context(), s, "cat /late"))
		for what, err := range map[string]error{"the command": reading, "the sandbox": isOver(t, s), "a pause": pauseError(t, s)} {
			var frame *block.CorruptError
			if !errors.As(err, &frame) {
				t.Fatalf("%s has the error %v", what, err)
			}
			if frame.Layer != layer || !strings.Contains(err.Error(), fmt.Sprint("frame ", frame.Frame)) || !strings.Contains(err.Error(), snapshot.DiskFile) || !strings.Contains(err.Error(), lab.template.String()) {
				t.Errorf("%s has the error %v", what, err)
			}
		}
	})
}

// TestDamagedParent pauses a machine whose parent's memory is damaged where the flat file, made before, is not: what is published is right.
func TestDamagedParent(t *testing.T) {
	b := linked(t)
	s := b.resume(t, lab.template)
	output(t, s, "echo x > /x")
	damage(t, filepath.Join(b.store, lab.template.String(), snapshot.MemoryFile), flip(100_000))
	id := pause(t, s, PauseSpec{})
	if err := b.Snapshots.Verify(t.Context(), b.open(t, id), nil); err == nil {
		t.Error("the damage is not found")
	}
	if err := newBench(t, b.store, filepath.Join(t.TempDir(), "cache"), nil).tryResume(t, id); err == nil || !strings.Contains(err.Error(), id.String()) || !strings.Contains(err.Error(), lab.template.String()) {
		t.Errorf("waking a child of a damaged parent: %v", err)
	}
}

// TestIncompatible makes the host seem another.
func TestIncompatible(t *testing.T) {
	lab.need(t)
	for field, change := range map[string]func(*vmm.Description){
		"engine.version": func(d *vmm.Description) { d.Version = "99.1" },
		"engine.name":    func(d *vmm.Description) { d.Engine = "another" },
		"engine.machine": func(d *vmm.Description) { d.MachineType = "pc" },
		"engine.accel":   func(d *vmm.Description) { d.Accel = vmm.KVM },
		"cpu.model":      func(d *vmm.Description) { d.CPUModel = "486" },
		"cpu.tsc_khz":    func(d *vmm.Description) { d.TSCKHz *= 2 },
	} {
		engine := rig(nil)
		engine.describe = change
		b := shared(t, engine)
		err := b.tryResume(t, lab.template)
		var wrong *snapshot.IncompatibleError
		if !errors.As(err, &wrong) || len(wrong.Differences) != 1 || wrong.Differences[0].Field != field || wrong.ID != lab.template {
			t.Errorf("%s: %v", field, err)
		} else if !strings.Contains(err.Error(), field) || !strings.Contains(err.Error(), lab.image()) {
			t.Errorf("%s: the message lacks the field or the image: %v", field, err)
		}
		b.isClean(t)
	}
	if _, err := shared(t, nil).Resume(t.Context(), shared(t, nil).open(t, lab.template), ResumeOptions{Accel: "warp"}, NoProgress{}); err == nil {
		t.Error("an accelerator that there is not is accepted")
	}
}
