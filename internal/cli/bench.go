package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/bench"
)

func (a *app) benchCommand() *cobra.Command {
	env := bench.Env{}
	suites := bench.Suites()
	var about strings.Builder
	for _, s := range suites {
		fmt.Fprintf(&about, "\n  %-10s %s", s.Name, s.Short)
	}
	c := &cobra.Command{
		Use:   "bench SUITE",
		Short: "Measure this host",
		Long: "Measures and prints a table, or with --json a report for other tools: per measurement the number of samples, p50, p90, p99, min and max, and the ratios\n" +
			"between measurements of the same run.\n\nSuites:" + about.String(),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageErrorf("bench takes one suite: %s", suiteNames(suites))
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return strings.Split(suiteNames(suites), ", "), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.bench(cmd.Context(), suites, args[0], env) },
	}
	c.Flags().IntVarP(&env.Iterations, "iterations", "n", 10, "samples of each measurement")
	c.Flags().StringVar(&env.Image, "image", "apt:bookworm/python3-minimal", "what the measured machines are made of")
	c.Flags().StringVar(&env.Accel, "accel", "auto", "what runs the guests: auto, kvm or tcg")
	return c
}

func suiteNames(suites []bench.Suite) string {
	names := make([]string, len(suites))
	for i, s := range suites {
		names[i] = s.Name
	}
	return strings.Join(names, ", ")
}

func (a *app) bench(ctx context.Context, suites []bench.Suite, name string, env bench.Env) error {
	if env.Iterations < 1 || env.Iterations > maxIterations {
		return usageErrorf("--iterations %d: choose 1 to %d", env.Iterations, maxIterations)
	}
	for _, s := range suites {
		if s.Name != name {
			continue
		}
		var err error
		if env.Arch, err = a.arch(); err != nil {
			return err
		}
		if env.Host, err = a.host(ctx); err != nil {
			return err
		}
		env.Pager = func(store string) []string { return []string{"/proc/self/exe", servePages, "--store", store} }
		env.Process = []string{"/proc/self/exe", benchProcess}
		progress := a.show()
		env.Progress = progress
		report, err := s.Run(ctx, env)
		if err != nil {
			return fmt.Errorf("suite %s: %w", name, err)
		}
		progress.end()
		if a.json {
			return a.printJSON(report)
		}
		return report.Table(a.Out)
	}
	return usageErrorf("there is no suite %q: choose from %s", name, suiteNames(suites))
}

const benchProcess = "bench-process"

// benchProcessCommand is what suites measure with that has to be a process of its own.
func (a *app) benchProcessCommand() *cobra.Command {
	return &cobra.Command{
		Use:    benchProcess + " ROLE [ARGUMENT...]",
		Short:  "Play a part in a measurement",
		Hidden: true,
		Args:   cobra.ArbitraryArgs,
		RunE:   func(_ *cobra.Command, args []string) error { return bench.Process(args, a.In, a.Out) },
	}
}
