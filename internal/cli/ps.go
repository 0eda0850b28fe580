package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// shortID is as much of a sandbox's id as tables show.
const shortID = 12

func (a *app) psCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ps",
		Short: "List the daemon's sandboxes",
		Long:  "Lists the sandboxes of the daemon on this host, or of the one at $SPORE_URL with the key $SPORE_API_KEY: running and paused ones, youngest first.",
		Args:  exactArgs(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.ps(cmd.Context()) },
	}
	a.daemonFlags(c.Flags())
	return c
}

func (a *app) ps(ctx context.Context) error {
	c, err := a.daemon(ctx)
	if err != nil {
		return err
	}
	all, err := c.List(ctx)
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
		if s.State == "running" {
			left = max(0, time.Until(s.EndAt)).Round(time.Second).String()
		}
		rows[i] = []string{
			s.SandboxID[:shortID], first(s.Alias, s.TemplateID), string(s.State), age(time.Since(s.StartedAt)), left, fmt.Sprintf("%d", s.CPUCount), formatBytes(s.MemoryMB << 20),
		}
	}
	return table(a.Out, []string{"SANDBOX", "TEMPLATE", "STATE", "STARTED", "LEFT", "CPUS", "MEMORY"}, rows)
}
