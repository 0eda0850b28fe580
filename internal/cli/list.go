package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/snapshot"
)

func (a *app) listCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List snapshots",
		Long: `Lists the snapshots of the store, newest first. Disks of images and steps, which creations keep to start from, are shown with --all.

SIZE is what the snapshot itself adds to the store; what it shares with its parents is not counted again.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.list(cmd, all) },
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also the disks of images and steps")
	return c
}

// listed is a snapshot as list --json shows it.
type listed struct {
	ID          string            `json:"id"`
	Names       []string          `json:"names"`
	Kind        snapshot.Kind     `json:"kind"`
	Parent      string            `json:"parent,omitempty"`
	Created     time.Time         `json:"created"`
	Image       string            `json:"image,omitempty"`
	Arch        string            `json:"arch"`
	VCPUs       int               `json:"vcpus,omitempty"`
	MemoryBytes int64             `json:"memory_bytes,omitempty"`
	DiskBytes   int64             `json:"disk_bytes"`
	StoredBytes int64             `json:"stored_bytes"`
	Labels      map[string]string `json:"labels,omitempty"`
}

func listedOf(i snapshot.Info) listed {
	m := i.Metadata
	l := listed{
		ID: i.ID.String(), Names: i.Names, Kind: m.Kind, Created: m.Created, Image: m.Image.Ref, Arch: m.Arch, VCPUs: m.VCPUs,
		MemoryBytes: m.MemoryBytes, DiskBytes: m.DiskBytes, StoredBytes: m.StoredBytes(), Labels: m.Labels,
	}
	if l.Names == nil {
		l.Names = []string{}
	}
	if m.Parent != uuid.Nil {
		l.Parent = m.Parent.String()
	}
	return l
}

func (a *app) list(cmd *cobra.Command, all bool) error {
	repo, err := a.repo(cmd.Context())
	if err != nil {
		return err
	}
	broken := 0
	infos, err := repo.List(cmd.Context(), func(_ uuid.UUID, err error) {
		broken++
		fmt.Fprintf(a.Err, "spore: %v\n", err)
	})
	if err != nil {
		return err
	}
	shown := []listed{}
	for _, info := range slices.Backward(infos) {
		if all || info.Metadata.Kind == snapshot.KindMachine {
			shown = append(shown, listedOf(info))
		}
	}
	if a.json {
		err = a.printJSON(shown)
	} else {
		err = a.listTable(shown)
	}
	if err == nil && broken > 0 {
		return &brokenError{broken}
	}
	return err
}

// brokenError says that a list is not all there is.
type brokenError struct{ n int }

func (e *brokenError) Error() string {
	return fmt.Sprintf("snapshots that can't be read: %d; `spore verify` says more, `spore rm` removes them", e.n)
}

func (a *app) listTable(shown []listed) error {
	rows := make([][]string, len(shown))
	for i, l := range shown {
		memory := "-"
		if l.MemoryBytes > 0 {
			memory = formatBytes(l.MemoryBytes)
		}
		parent := "-"
		if l.Parent != "" {
			parent = l.Parent[:8]
		}
		rows[i] = []string{
			l.ID, first(strings.Join(l.Names, ","), "-"), string(l.Kind), parent, age(time.Since(l.Created)), memory, formatBytes(l.DiskBytes), formatBytes(l.StoredBytes), first(l.Image, "-"),
		}
	}
	return table(a.Out, []string{"ID", "NAME", "KIND", "PARENT", "CREATED", "MEMORY", "DISK", "SIZE", "IMAGE"}, rows)
}

// completeFirst offers snapshots for the first n arguments, and nothing for those after them.
func (a *app) completeFirst(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, partial string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeSnapshots(cmd, args, partial)
	}
}

// completeSnapshots offers names and ids to the shell.
func (a *app) completeSnapshots(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	repo, err := a.repo(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	infos, err := repo.List(cmd.Context(), nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, i := range infos {
		if i.Metadata.Kind != snapshot.KindMachine {
			continue
		}
		out = append(out, i.Names...)
		out = append(out, i.ID.String()+"\t"+i.Metadata.Image.Ref)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
