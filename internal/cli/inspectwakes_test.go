package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// TestWakesAllowed tells of hosts on which a snapshot for Firecracker does not wake, and of what mends them.
func TestWakesAllowed(t *testing.T) {
	locked := check{Status: checkWarn, Detail: "only root may open /dev/kvm", Fix: "chmod", stops: []string{engineFirecracker}}
	slow := check{Status: checkWarn, Detail: "QEMU would do without", Fix: "chmod"}
	unserved := &firecracker.UnservedError{Why: "the door is locked", Fix: "knock"}
	for _, c := range []struct {
		memory       string
		kvm          check
		serve        error
		refused, fix string
	}{
		{wakesServed, check{Status: checkOK}, nil, "", ""},
		{wakesServed, slow, nil, "", ""},
		{wakesServed, slow, unserved, "the door is locked", "knock"},
		{wakesServed, slow, errors.New("the door is gone"), "the door is gone", ""},
		{wakesServed, locked, unserved, "only root may open /dev/kvm", "chmod"},
		{wakesMapped, locked, unserved, "only root may open /dev/kvm", "chmod"},
		{wakesMapped, slow, unserved, "", ""}, // nobody is to serve it
	} {
		w := wakes{Memory: c.memory, Why: "why"}
		w.allowed(c.kvm, func() error { return c.serve })
		if (w.Refused == "") != (c.refused == "") || !strings.Contains(w.Refused, c.refused) || w.Fix != c.fix {
			t.Errorf("%+v: refused %q, to be mended by %q", c, w.Refused, w.Fix)
		}
		if text := w.String(); strings.Contains(text, "but not here: ") != (c.refused != "") || strings.Contains(text, "to mend that: ") != (c.fix != "") {
			t.Errorf("%+v: %s", c, text)
		}
	}
}
