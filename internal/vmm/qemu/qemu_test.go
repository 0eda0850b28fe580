package qemu

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

func TestContract(t *testing.T) {
	engine := New(t.TempDir())
	t.Run("tcg", func(t *testing.T) { vmmtest.Run(t, engine, vmm.TCG, vmmtest.PVH()) })
	t.Run("kvm", func(t *testing.T) {
		if s := engine.KVM(t.Context(), "amd64"); !s.Usable {
			t.Skipf("KVM runs no guests here: %s", s.Reason)
		}
		vmmtest.Run(t, engine, vmm.KVM, vmmtest.PVH())
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
