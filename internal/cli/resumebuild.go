package cli

import "github.com/spf13/cobra"

func (a *app) resumeBuildCommand() *cobra.Command {
	var f buildFlags
	var r resumeFlags
	c := &cobra.Command{
		Use:   "resume-build --from-build UUID",
		Short: "resume, under the flags of E2B's orchestrator",
		Long: `Does what resume does, under the names, flags and defaults of E2B's orchestrator. Long flags also work with a single dash: -from-build UUID.

Builds are looked for in .local-build unless -storage says otherwise.`,
		Example: `  spore resume-build -from-build 123e4567-e89b-42d3-a456-426614174000 -iterations 10
  spore resume-build -from-build 123e4567-e89b-42d3-a456-426614174000 -cmd-pause 'apt-get install -y curl'`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.from == "" {
				return usageErrorf("resume-build needs -from-build UUID, the build to resume")
			}
			f.apply(a)
			r.to, r.accel = f.to, "auto"
			return a.resume(cmd.Context(), f.from, r)
		},
	}
	f.register(c)
	r.register(c.Flags())
	a.jailFlags(c.Flags())
	a.trustFlags(c.Flags())
	return c
}
