package builds

import (
	"context"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sporevm/spore/internal/sandbox"
)

// Recipe says how a template is made.
type Recipe struct {
	Image        string // or
	Template     string // name or id
	Instructions []Instruction
	Start, Ready string
	Force        bool // run every step again
}

// Instruction is one of the kinds that SDKs know: RUN, COPY, ENV, WORKDIR and USER.
type Instruction struct {
	Kind  string
	Args  []string
	Files string // hash of the files of a COPY, as its sender computed it
	Force bool
}

// plan remembers which instruction a step comes from, and holds the files of the copies.
type plan struct {
	numbers []int // by step, from 0: the instruction's number, from 1
	files   *files
	trees   []string
}

// instruction names the one that a step, counted from 1, comes from.
func (p *plan) instruction(step int) string {
	if step < 1 || step > len(p.numbers) {
		return "base"
	}
	return strconv.Itoa(p.numbers[step-1])
}

// remove lets go of the files of the copies.
func (p *plan) remove() {
	for _, t := range p.trees {
		p.files.release(t)
	}
}

// local are the beginnings of references to images that lie on this host: who builds one of them reads its files.
var local = [...]string{"dir", "tar", "oci", "oci-archive", "docker-archive"}

// plan turns a recipe into a spec's steps.
func (b *Builds) plan(ctx context.Context, owner string, r Recipe, spec *sandbox.CreateSpec) (_ *plan, err error) {
	if (r.Image == "") == (r.Template == "") {
		return nil, invalid("name either an image or a template to start from")
	}
	if len(r.Instructions) > maxSteps {
		return nil, invalid("%d steps: at most %d", len(r.Instructions), maxSteps)
	}
	if scheme, _, _ := strings.Cut(r.Image, ":"); slices.Contains(local[:], scheme) {
		return nil, invalid("images that lie on this host are not for clients: name one in a registry, or apt:SUITE/PACKAGE")
	}
	spec.Image, spec.StartCommand, spec.ReadyCommand, spec.NoCache = r.Image, r.Start, r.Ready, r.Force
	if r.Template != "" {
		if spec.From, err = b.templateOf(ctx, r.Template); err != nil {
			return nil, err
		}
	}
	p := &plan{files: b.files}
	defer func() {
		if err != nil {
			p.remove()
		}
	}()
	user := "root"
	for i, in := range r.Instructions {
		spec.NoCache = spec.NoCache || in.Force
		steps, err := b.steps(owner, in, &user, p)
		if err != nil {
			return nil, err
		}
		for range steps {
			p.numbers = append(p.numbers, i+1)
		}
		spec.Steps = append(spec.Steps, steps...)
	}
	return p, nil
}

// steps turns one instruction into steps. user is the one that the steps run as.
func (b *Builds) steps(owner string, in Instruction, user *string, p *plan) ([]sandbox.Step, error) {
	for _, arg := range in.Args {
		if strings.IndexByte(arg, 0) >= 0 {
			return nil, invalid("%s: an argument holds a zero byte", in.Kind)
		}
	}
	step := func(kind string, args ...string) sandbox.Step { return sandbox.Step{Kind: kind, Args: args} }
	as := func(other string, steps ...sandbox.Step) []sandbox.Step {
		if other == *user {
			return steps
		}
		return slices.Concat([]sandbox.Step{step(sandbox.StepUser, other)}, steps, []sandbox.Step{step(sandbox.StepUser, *user)})
	}
	switch kind, n := strings.ToUpper(in.Kind), len(in.Args); {
	case kind == "RUN" && n == 1, kind == "RUN" && n == 2 && in.Args[1] == "":
		return []sandbox.Step{step(sandbox.StepRun, in.Args[0])}, nil
	case kind == "RUN" && n == 2:
		return as(in.Args[1], step(sandbox.StepRun, in.Args[0])), nil
	case kind == "ENV" && n > 0 && n%2 == 0:
		var steps []sandbox.Step
		for pair := range slices.Chunk(in.Args, 2) {
			steps = append(steps, step(sandbox.StepEnv, pair...))
		}
		return steps, nil
	case kind == "WORKDIR" && n == 1:
		return []sandbox.Step{step(sandbox.StepWorkdir, in.Args[0])}, nil
	case kind == "USER" && n == 1 && in.Args[0] != "":
		*user = in.Args[0]
		return []sandbox.Step{step(sandbox.StepUser, in.Args[0])}, nil
	case kind == "COPY" && n >= 2 && n <= 4:
		return b.copySteps(owner, in, as, p)
	default:
		return nil, invalid("%.20q with %d arguments is no step: RUN, COPY, ENV, WORKDIR and USER are known", in.Kind, n)
	}
}

// copySteps turns a COPY into steps: arguments are source, destination, and perhaps user and mode.
func (b *Builds) copySteps(owner string, in Instruction, as func(string, ...sandbox.Step) []sandbox.Step, p *plan) ([]sandbox.Step, error) {
	source, destination := in.Args[0], in.Args[1]
	if destination == "" {
		return nil, invalid("COPY needs a destination")
	}
	tree, err := b.files.tree(owner, in.Files)
	if err != nil {
		return nil, err
	}
	p.trees = append(p.trees, tree)
	found, err := find(tree, source)
	if err != nil {
		return nil, err
	}
	var steps, after []sandbox.Step
	for _, name := range found {
		to := destination
		if len(found) > 1 {
			to = path.Join(destination, filepath.Base(name))
		}
		steps = append(steps, sandbox.Step{Kind: sandbox.StepCopy, Args: []string{name, to}})
	}
	if len(in.Args) > 2 && in.Args[2] != "" {
		after = append(after, sandbox.Step{Kind: sandbox.StepRun, Args: []string{"chown -R -- " + quoted(in.Args[2]) + " " + quoted(destination)}})
	}
	if len(in.Args) > 3 && in.Args[3] != "" {
		if mode, err := strconv.ParseUint(in.Args[3], 8, 12); err != nil {
			return nil, invalid("COPY: mode %.20q is not an octal number", in.Args[3])
		} else {
			after = append(after, sandbox.Step{Kind: sandbox.StepRun, Args: []string{"chmod -R " + strconv.FormatUint(mode, 8) + " -- " + quoted(destination)}})
		}
	}
	if len(after) > 0 {
		steps = append(steps, as("root", after...)...)
	}
	return steps, nil
}

// quoted is a word for a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
