package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
)

// inspectText shows the result to a person.
func (a *app) inspectText(r inspected, f inspectFlags) error {
	m := r.Metadata
	var rows [][]string
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	add("id", m.ID.String())
	add("names", strings.Join(r.Names, ", "))
	add("digest", r.Digest.String())
	add("kind", string(m.Kind))
	if m.Parent != uuid.Nil {
		add("parent", m.Parent.String())
	}
	for _, child := range r.Children {
		add("child", child.String())
	}
	add("created", fmt.Sprintf("%s (%s)", m.Created.Format(time.RFC3339), age(time.Since(m.Created))))
	add("image", strings.TrimSpace(m.Image.Ref+" "+m.Image.Digest))
	if n := len(m.Image.Packages); n > 0 {
		add("packages", fmt.Sprintf("%d, listed by --json", n))
	}
	machine := m.Arch
	if m.VCPUs > 0 {
		machine += fmt.Sprintf(", %d vCPU, %s memory, network %s", m.VCPUs, formatBytes(m.MemoryBytes), cmp.Or(m.Net, "none"))
	}
	add("machine", machine)
	if m.Engine.Name != "" {
		add("engine", strings.TrimSpace(fmt.Sprintf("%s %s %s %s", m.Engine.Name, m.Engine.Version, m.Engine.Machine, m.Engine.Accel)))
		add("cpu", m.CPU.Model)
	}
	if r.Wakes != nil {
		add("wakes by", r.Wakes.String())
	}
	add("kernel", m.Kernel.Version)
	add("agent", m.Agent)
	add("user", m.Context.User)
	add("workdir", m.Context.Workdir)
	for _, name := range slices.Sorted(maps.Keys(m.Context.Env)) {
		add("env", name+"="+m.Context.Env[name])
	}
	add("entrypoint", quoteArgs(m.Entrypoint))
	add("cmd", quoteArgs(m.Cmd))
	for _, s := range m.Steps {
		add("step", strings.ToUpper(s.Kind)+" "+strings.Join(s.Args, " "))
	}
	add("start", oneLine(m.StartCommand))
	add("ready", oneLine(m.ReadyCommand))
	for _, name := range slices.Sorted(maps.Keys(m.Labels)) {
		add("label", name+"="+m.Labels[name])
	}
	if m.Origin != uuid.Nil {
		add("squashed from", m.Origin.String())
	}
	for _, p := range m.Processes {
		add("process", fmt.Sprintf("%d  user %d  %q", p.PID, p.UID, p.Command))
	}
	if err := table(a.Out, nil, rows); err != nil {
		return err
	}
	if err := a.lineageText(r.Lineage, f); err != nil {
		return err
	}
	generations := map[uuid.UUID]int{}
	for i, one := range r.Lineage {
		generations[one.ID] = i + 1
	}
	for _, name := range []string{snapshot.DiskFile, snapshot.MemoryFile} {
		if image, ok := r.Images[name]; ok {
			if err := a.imageText(name, image, f, generations); err != nil {
				return err
			}
		}
	}
	return nil
}

// oneLine quotes what would break a table.
func oneLine(text string) string {
	if strings.ContainsAny(text, "\n\r\t\x1b") {
		return fmt.Sprintf("%q", text)
	}
	return text
}

func quoteArgs(args []string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		quoted[i] = fmt.Sprintf("%q", arg)
	}
	return strings.Join(quoted, " ")
}

func (a *app) imageText(name string, i inspectImage, f inspectFlags, generations map[uuid.UUID]int) error {
	fmt.Fprintf(a.Out, "\n%s: %s, of which %s data and %s zeros, in %d runs; generation %d, blocks of %s, frames of %s\n",
		name, formatBytes(i.Size), formatBytes(i.Data), formatBytes(i.Zeros), i.Runs, i.Generation, formatBytes(i.BlockSize), formatBytes(i.FrameSize))
	if i.Part != nil {
		return a.partText(i, f)
	}
	a.heatMap(a.Out, i.header, func(id uuid.UUID) int { return cmp.Or(generations[id], len(generations)+1) })
	rows := make([][]string, len(i.Layers))
	for n, l := range i.Layers {
		rows[n] = []string{"  " + l.Snapshot.String(), formatBytes(l.Used), formatBytes(l.Packed), formatBytes(l.Stored), fmt.Sprint(l.Frames), fmt.Sprint(l.Runs)}
	}
	if len(rows) == 0 {
		return nil
	}
	return table(a.Out, []string{"  LAYER OF", "USED", "PACKED", "STORED", "FRAMES", "RUNS"}, rows)
}
