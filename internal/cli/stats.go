package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
)

func (a *app) statsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "stats SANDBOX",
		Short: "Measure a sandbox of the daemon",
		Long: `Measures a running sandbox: what its guest says of processors, memory and disk, and what its VMM has measured since it started, but for zeros. QEMU measures
nothing; Firecracker's names are its own, such as block.read_bytes. What the guest was asked to give back of its memory is balloon.amount_mib.`,
		Example:           "  spore stats 3fa9",
		Args:              exactArgs("one sandbox"),
		ValidArgsFunction: a.completeSandboxes,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.stats(cmd.Context(), args[0]) },
	}
	a.daemonFlags(c.Flags())
	return c
}

func (a *app) stats(ctx context.Context, ref string) error {
	c, id, err := a.onSandbox(ctx, ref)
	if err != nil {
		return err
	}
	m, err := c.Measure(ctx, id)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(m)
	}
	rows := [][]string{
		{"processors", fmt.Sprintf("%d, %.0f%% busy", m.CPUCount, m.CPUUsedPct)},
		{"memory", fmt.Sprintf("%s of %s, and %s of files", formatBytes(m.MemUsed), formatBytes(m.MemTotal), formatBytes(m.MemCache))},
		{"disk", fmt.Sprintf("%s of %s", formatBytes(m.DiskUsed), formatBytes(m.DiskTotal))},
	}
	for _, name := range slices.Sorted(maps.Keys(m.VMM)) {
		rows = append(rows, []string{name, strconv.FormatFloat(m.VMM[name], 'f', -1, 64)})
	}
	return table(a.Out, nil, rows)
}
