package sandbox

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// TestBadSpec asks for what can't be made. Each error names the value, and no work is done.
func TestBadSpec(t *testing.T) {
	b := fresh(t, nil)
	for name, c := range map[string]struct {
		change func(*CreateSpec)
		want   string
	}{
		"no image":           {func(s *CreateSpec) { s.Image = "" }, "either an image or a snapshot"},
		"image and snapshot": {func(s *CreateSpec) { s.From = "x" }, "either an image or a snapshot"},
		"no CPU":             {func(s *CreateSpec) { s.CPUs = 0 }, "0 virtual CPUs"},
		"negative CPUs":      {func(s *CreateSpec) { s.CPUs = -3 }, "-3 virtual CPUs"},
		"many CPUs":          {func(s *CreateSpec) { s.CPUs = math.MaxInt }, "virtual CPUs"},
		"no memory":          {func(s *CreateSpec) { s.MemoryBytes = 0 }, "0 MiB of memory"},
		"negative memory":    {func(s *CreateSpec) { s.MemoryBytes = math.MinInt64 }, "MiB of memory"},
		"absurd memory":      {func(s *CreateSpec) { s.MemoryBytes = math.MaxInt64 }, "MiB of memory"},
		"more than the host": {func(s *CreateSpec) { s.MemoryBytes = maxMemory }, "this host has"},
		"odd memory":         {func(s *CreateSpec) { s.MemoryBytes = 160<<20 + 4096 }, "multiple of 2 MiB"},
		"no disk":            {func(s *CreateSpec) { s.DiskBytes = 0 }, "0 MiB of disk"},
		"negative disk":      {func(s *CreateSpec) { s.DiskBytes = -1 }, "of disk"},
		"absurd disk":        {func(s *CreateSpec) { s.DiskBytes = math.MaxInt64 }, "of disk"},
		"small disk":         {func(s *CreateSpec) { s.DiskBytes = minDisk - 1 }, "of disk"},
		"accelerator":        {func(s *CreateSpec) { s.Accel = "warp" }, "warp"},
		"network":            {func(s *CreateSpec) { s.Net = "token ring" }, "token ring"},
		"name":               {func(s *CreateSpec) { s.Names = []string{"good", "../bad"} }, "../bad"},
		"timeout":            {func(s *CreateSpec) { s.ReadyTimeout = -time.Second }, "-1s"},
		"unknown step":       {func(s *CreateSpec) { s.Steps = []Step{{"dance", nil}} }, "dance"},
		"step's arguments":   {func(s *CreateSpec) { s.Steps = []Step{{StepRun, []string{"true"}}, {StepCopy, []string{"a"}}} }, "step 2"},
		"empty step":         {func(s *CreateSpec) { s.Steps = []Step{{StepRun, []string{""}}} }, "not empty"},
		"variable":           {func(s *CreateSpec) { s.Steps = []Step{{StepEnv, []string{"A=B", "c"}}} }, "A=B"},
		"unknown snapshot":   {func(s *CreateSpec) { s.Image, s.From = "", "nothing-of-that-name" }, "nothing-of-that-name"},
		"unknown image":      {func(s *CreateSpec) { s.Image = "dir:/nowhere" }, "/nowhere"},
		"copy of nothing": {func(s *CreateSpec) {
			s.Steps = []Step{{StepCopy, []string{"/nowhere/at/all", "/x"}}}
		}, "/nowhere/at/all"},
	} {
		spec := small()
		c.change(&spec)
		snap, err := b.Create(t.Context(), spec, NoProgress{})
		if err == nil {
			snap.Close()
			t.Errorf("%s: accepted", name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error does not say %q: %v", name, c.want, err)
		}
	}
	b.hasOnlyDisks(t)
	b.isClean(t)
}

// TestTaken creates under an id that is taken: that is found out before any work.
func TestTaken(t *testing.T) {
	b := shared(t, nil)
	spec := small()
	spec.ID = lab.template
	phases := new(phaseLog)
	if _, err := b.Create(t.Context(), spec, phases); !errors.Is(err, store.ErrExist) || !strings.Contains(err.Error(), spec.ID.String()) {
		t.Errorf("error is %v", err)
	}
	if len(phases.phases) > 0 {
		t.Errorf("work was done: %v", phases.phases)
	}
}

// TestDiskIsNotWoken tries to wake what has no memory.
func TestDiskIsNotWoken(t *testing.T) {
	b := shared(t, nil)
	var disk uuid.UUID
	for _, id := range b.ids(t) {
		if b.open(t, id).Metadata().Kind == snapshot.KindImage {
			disk = id
		}
	}
	if err := b.tryResume(t, disk); err == nil || !strings.Contains(err.Error(), disk.String()) || !strings.Contains(err.Error(), "--from") {
		t.Errorf("error is %v", err)
	}
	b.isClean(t)
}
