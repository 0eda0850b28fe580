package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// shortID is as much of a sandbox's id as tables show.
const shortID = 12

// Owners of sandboxes, as ps shows them.
const (
	ownerDaemon = "daemon"
	ownerAlone  = "alone" // a command
)

func (a *app) psCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ps",
		Short: "List sandboxes",
		Long: `Lists the sandboxes of the daemon on this host, or of the one at $SPORE_URL with the key $SPORE_API_KEY: running and paused ones, youngest first.

Below them are machines of this host that belong to commands, such as run and resume without a daemon, and end with them. Their owner is "alone".`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ps(cmd.Context()) },
	}
	a.daemonFlags(c.Flags())
	return c
}

// psEntry is a sandbox as --json shows it.
type psEntry struct {
	openapi.ListedSandbox
	EndAt *time.Time `json:"endAt"` // nil: its time has no end
	Owner string     `json:"owner"`
	PID   int        `json:"pid,omitempty"`   // of the command that it belongs to
	Image string     `json:"image,omitempty"` // of one that belongs to a command
}

// aloneEntry is a machine that runs alone in the daemon's terms.
func aloneEntry(r sandbox.Running) psEntry {
	return psEntry{
		ListedSandbox: openapi.ListedSandbox{
			SandboxID: hexID(r), TemplateID: r.Snapshot.String(), StartedAt: r.Started, State: openapi.Running, CPUCount: r.CPUs,
			MemoryMB: r.MemoryBytes >> 20, DiskSizeMB: r.DiskBytes >> 20, Spore: openapi.SandboxOrigin{Snapshot: r.Snapshot.String(), Net: r.Net},
		},
		Owner: ownerAlone, PID: r.Owner, Image: r.Image,
	}
}

// sandboxes returns all that ps lists. The error is a *noDaemon only if there is nothing without one.
func (a *app) sandboxes(ctx context.Context) ([]psEntry, error) {
	alone, err := a.alone()
	if err != nil {
		return nil, err
	}
	all := []psEntry{}
	c, err := a.daemon(ctx)
	switch {
	case is[*noDaemon](err) && len(alone) > 0:
		a.say("%v", err)
	case err != nil:
		return nil, err
	default:
		theirs, err := c.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range theirs {
			all = append(all, psEntry{ListedSandbox: s, EndAt: &s.EndAt, Owner: ownerDaemon})
		}
	}
	for _, r := range alone {
		all = append(all, aloneEntry(r))
	}
	return all, nil
}

func (a *app) ps(ctx context.Context) error {
	all, err := a.sandboxes(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(all)
	}
	if a.quiet {
		for _, s := range all {
			if err := a.println(s.SandboxID); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([][]string, len(all))
	for i, s := range all {
		left := "-"
		if s.State == openapi.Running && s.EndAt != nil {
			left = max(0, time.Until(*s.EndAt)).Round(time.Second).String()
		}
		rows[i] = []string{
			s.SandboxID[:shortID], first(s.Alias, s.Image, s.TemplateID), string(s.State), age(time.Since(s.StartedAt)), left, fmt.Sprintf("%d", s.CPUCount), formatBytes(s.MemoryMB << 20), s.Owner,
		}
	}
	return table(a.Out, []string{"SANDBOX", "TEMPLATE", "STATE", "STARTED", "LEFT", "CPUS", "MEMORY", "OWNER"}, rows)
}
