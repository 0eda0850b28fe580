package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/snapshot"
)

// Step is one instruction of a recipe. Run takes a command line; copy a source on the host and a destination in the guest; env a name and a value;
// workdir a path; user a name or number. Env, workdir and user hold for all steps after them and for the machine.
type Step struct {
	Kind string   `json:"kind"`
	Args []string `json:"args"`
}

// The kinds of steps.
const (
	StepRun     = "run"
	StepCopy    = "copy"
	StepEnv     = "env"
	StepWorkdir = "workdir"
	StepUser    = "user"
)

func (s Step) check() error {
	want, known := map[string]int{StepRun: 1, StepCopy: 2, StepEnv: 2, StepWorkdir: 1, StepUser: 1}[s.Kind]
	switch {
	case !known:
		return fmt.Errorf("unknown kind %q: run, copy, env, workdir and user are known", s.Kind)
	case len(s.Args) != want:
		return fmt.Errorf("%s takes %d arguments, not %d", s.Kind, want, len(s.Args))
	case s.Args[0] == "":
		return fmt.Errorf("%s needs an argument that is not empty", s.Kind)
	case s.Kind == StepEnv && strings.ContainsAny(s.Args[0], "=\x00"):
		return fmt.Errorf("%q can't be the name of an environment variable", s.Args[0])
	}
	return nil
}

func (s Step) String() string { return strings.ToUpper(s.Kind) + " " + strings.Join(s.Args, " ") }

// StepError says that a step of a recipe failed in the guest.
type StepError struct {
	Number int // from 1
	Step   Step
	Status guest.ExitStatus
	Output string
}

func (e *StepError) Error() string {
	return fmt.Sprintf("step %d failed (%v): %s%s", e.Number, e.Status, e.Step, quoted(e.Output))
}

// runSteps brings a disk to the state after all steps. Each step that changes the disk becomes a disk-only snapshot of its own, whose id is the hash of
// all that it depends on; a step whose snapshot is there is not run. One machine runs all the steps that are left.
// The disk that it is given is closed, unless it is the one that it returns; it returns one to be closed in any case.
func (h *Host) runSteps(ctx context.Context, disk *snapshot.Snapshot, meta snapshot.Metadata, spec CreateSpec, p Progress) (*snapshot.Snapshot, snapshot.Metadata, error) {
	var builder *Sandbox
	var past []*snapshot.Snapshot // the builder may stand on any of them
	defer func() {
		if builder != nil {
			builder.Close()
		}
		for _, snap := range past {
			snap.Close()
		}
	}()
	meta.Context.Env = cloneEnv(meta.Context.Env)
	chain := disk.ID()
	for i, step := range spec.Steps {
		p.Phase(fmt.Sprintf("step %d/%d", i+1, len(spec.Steps)))
		meta.Steps = append(slices.Clip(meta.Steps), snapshot.Step{Kind: step.Kind, Args: step.Args})
		if applyContext(&meta.Context, step) {
			continue
		}
		var err error
		if chain, err = nextLink(chain, meta, step); err != nil {
			return disk, meta, fmt.Errorf("step %d: %w", i+1, err)
		}
		if spec.NoCache {
			chain = uuid.New()
		}
		next, err := h.once(ctx, chain, func() (*snapshot.Snapshot, error) {
			if builder == nil {
				if builder, err = h.boot(ctx, disk, meta, spec); err != nil {
					return nil, err
				}
			}
			builder.meta.Context, builder.meta.Steps = meta.Context, meta.Steps
			if err := builder.runStep(ctx, i+1, step); err != nil {
				return nil, err
			}
			return builder.saveDisk(ctx, chain, p)
		})
		if err != nil {
			return disk, meta, err
		}
		past, disk = append(past, disk), next
		if builder != nil && builder.parent.ID() != disk.ID() {
			// Another process made this step meanwhile: our machine's disk is not the one that the next step stands on.
			err := builder.Close()
			builder = nil
			if err != nil {
				return disk, meta, err
			}
		}
	}
	return disk, meta, nil
}

// applyContext carries out the steps that change no disk.
func applyContext(c *snapshot.Context, step Step) bool {
	switch step.Kind {
	case StepEnv:
		c.Env = cloneEnv(c.Env) // an earlier layer's metadata holds the old one
		c.Env[step.Args[0]] = step.Args[1]
	case StepWorkdir:
		if c.Workdir = path.Join(c.Workdir, step.Args[0]); path.IsAbs(step.Args[0]) {
			c.Workdir = path.Clean(step.Args[0])
		}
	case StepUser:
		c.User = step.Args[0]
	default:
		return false
	}
	return true
}

func cloneEnv(env map[string]string) map[string]string {
	clone := make(map[string]string, len(env)+1)
	for k, v := range env {
		clone[k] = v
	}
	return clone
}

// nextLink hashes what a step depends on: all before it, itself, its context and, for a copy, the files' names, modes and content.
func nextLink(before uuid.UUID, meta snapshot.Metadata, step Step) (uuid.UUID, error) {
	// %q keeps fields apart, and maps print in the order of their keys.
	text := fmt.Sprintf("step 1\n%s %q %q %q %q %v\n", before, step.Kind, step.Args, meta.Context.User, meta.Context.Workdir, quoteEnv(meta.Context.Env))
	if step.Kind == StepCopy {
		digest, err := treeDigest(step.Args[0])
		if err != nil {
			return uuid.Nil, err
		}
		text += digest
	}
	return uuid.NewSHA1(derived, []byte(text)), nil
}

func quoteEnv(env map[string]string) string { return fmt.Sprintf("%q", env) }

// runStep carries out a step in the guest.
func (s *Sandbox) runStep(ctx context.Context, number int, step Step) error {
	if step.Kind == StepCopy {
		if err := s.copyIn(ctx, step.Args[0], step.Args[1]); err != nil {
			return fmt.Errorf("step %d: %s: %w", number, step, err)
		}
		return nil
	}
	output := new(tail)
	cmd := s.Command(shell(step.Args[0]))
	cmd.Stdout, cmd.Stderr = output, output
	status, err := s.Run(ctx, cmd)
	if err != nil {
		return fmt.Errorf("step %d: %s: %w", number, step, err)
	}
	if !status.Success() {
		return &StepError{Number: number, Step: step, Status: status, Output: output.String()}
	}
	return nil
}

// saveDisk publishes the disk alone, and lets the machine go on.
func (s *Sandbox) saveDisk(ctx context.Context, id uuid.UUID, p Progress) (*snapshot.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	draft, err := s.host.Snapshots.NewDraft(ctx, id, s.parent)
	if err != nil {
		return nil, err
	}
	defer draft.Abort()
	if _, err := s.quiesce(ctx); err != nil {
		return nil, err
	}
	if err := s.machine.Stop(ctx); err != nil {
		return nil, fmt.Errorf("stopping the machine: %w", err)
	}
	err = s.disk.freeze()
	if err := errors.Join(err, s.machine.Continue(ctx)); err != nil {
		return nil, err
	}
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	w, err := draft.Disk(s.meta.DiskBytes)
	if err != nil {
		return nil, err
	}
	if err := s.disk.save(ctx, w, p.Advance); err != nil {
		return nil, err
	}
	snap, err := draft.Commit(ctx, s.stepMetadata())
	if err != nil {
		return nil, err
	}
	return snap, s.follow(ctx, id)
}

// stepMetadata describes a disk without a machine.
func (s *Sandbox) stepMetadata() snapshot.Metadata {
	var m snapshot.Metadata
	m.Kind, m.Created = snapshot.KindStep, time.Now().UTC()
	m.Arch, m.DiskBytes = s.meta.Arch, s.meta.DiskBytes
	m.Image, m.Entrypoint, m.Cmd = s.meta.Image, s.meta.Entrypoint, s.meta.Cmd
	m.Context, m.Steps = s.meta.Context, s.meta.Steps
	return m
}
