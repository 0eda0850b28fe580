package cli

import (
	"context"
	"os"
	"slices"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// wakes says how machines of a snapshot come to their memory on this host, and why so.
type wakes struct {
	Memory   string `json:"memory"` // mapped, lazy or served
	Why      string `json:"why"`
	Prefetch int64  `json:"prefetch_bytes"` // known to be touched, and from afar fetched before they are; 0: nothing is known

	Refused string `json:"refused,omitempty"` // why they do not wake here all the same
	Fix     string `json:"fix,omitempty"`     // the command that mends that
}

// The ways to memory. A mapped file is the quickest by far where memory is near: a fault costs no switch to another process, and what is clean is shared.
const (
	wakesMapped = "mapped" // a file, laid out once, that all machines map privately
	wakesLazy   = "lazy"   // a file whose pages come when they are touched
	wakesServed = "served" // by userfaultfd, from one pager for all machines of the snapshot
)

// String is the line of the dashboard.
func (w wakes) String() string {
	text := w.Memory + " memory: " + w.Why
	switch {
	case w.Prefetch == 0:
	case w.Memory == wakesMapped:
		text += "; from a bucket " + formatBytes(w.Prefetch) + " would be fetched ahead"
	default:
		text += ", " + formatBytes(w.Prefetch) + " of it ahead"
	}
	if w.Refused != "" {
		text += "; but not here: " + w.Refused
	}
	if w.Fix != "" {
		text += "; to mend that: " + w.Fix
	}
	return text
}

// wakesHere tells how a snapshot would wake; nil if it is a disk alone.
func (a *app) wakesHere(ctx context.Context, repo *snapshot.Repo, s *snapshot.Snapshot) (*wakes, error) {
	m := s.Metadata()
	if !m.HasMemory() {
		return nil, nil
	}
	w := &wakes{Memory: wakesLazy, Why: "the store is far, so pages come when they are touched"}
	switch {
	case !repo.IsFar():
		w.Memory, w.Why = wakesMapped, "the store is on this host, so it is laid out once and shared through the page cache"
	case m.Engine.Name == firecracker.Name:
		w.Memory, w.Why = wakesServed, "the store is far and the engine handles page faults, so one pager serves all machines of the snapshot"
	}
	if m.Engine.Name == firecracker.Name {
		engine, err := a.otherEngine(m.Engine.Name, m.Engine.Version)
		if err != nil {
			return nil, err
		}
		w.allowed(hostFiles("/").kvmPermission(os.Geteuid()), vmm.NeedsOf(engine).MayServe)
	}
	ahead, err := repo.Prefetch(ctx, m.ID)
	if err != nil && !is[*snapshot.CorruptError](err) { // a damaged list is as good as none
		return nil, err
	}
	w.Prefetch = ahead.Len() * block.DefaultBlockSize
	return w, nil
}

// allowed asks whether this host lets machines of Firecracker wake: kvm is what the doctor says of KVM, and mayServe is the engine's answer.
func (w *wakes) allowed(kvm check, mayServe func() error) {
	if slices.Contains(kvm.stops, firecracker.Name) {
		w.Refused, w.Fix = kvm.Detail, kvm.Fix
		return
	}
	if w.Memory != wakesServed {
		return
	}
	if c := checkUserfault(mayServe()); c.Status != checkOK {
		w.Refused, w.Fix = c.Detail, c.Fix
	}
}
