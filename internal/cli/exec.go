package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sporevm/spore/internal/guest"
)

// commandFlags say how a command runs in a guest.
type commandFlags struct {
	tty, interactive bool
	env              []string
	workdir, user    string
}

func (f *commandFlags) register(flags *pflag.FlagSet) {
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass input on even if it is a terminal")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment variable, `NAME=VALUE`, or NAME to pass it on; may be repeated")
	flags.StringVarP(&f.workdir, "workdir", "w", "", "working directory in the guest")
	flags.StringVarP(&f.user, "user", "u", "", "user in the guest, by name or number")
}

// check refuses a terminal that is none.
func (f *commandFlags) check(a *app) error {
	if _, tty := terminal(a.In); f.tty && f.interactive && !tty {
		return usageErrorf("-it needs a terminal, and the input is none: leave -t out")
	}
	return nil
}

func (a *app) execCommand() *cobra.Command {
	var f commandFlags
	c := &cobra.Command{
		Use:   "exec SANDBOX -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a sandbox of the daemon",
		Long: `Runs a command in a sandbox with this terminal's input and output. A paused sandbox is woken first. The exit code is the command's.

Input that is not a terminal is always passed on; a terminal is with -i or -t.`,
		Example: `  spore exec 3fa9 -- python3 -c 'print(6*7)'
  spore exec -it 3fa9 -- sh`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageErrorf("exec takes a sandbox and a command")
			}
			return nil
		},
		ValidArgsFunction: a.completeSandboxes,
		PreRun:            func(*cobra.Command, []string) { a.running = true },
		RunE:              func(cmd *cobra.Command, args []string) error { return a.exec(cmd.Context(), args[0], args[1:], f) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.SetInterspersed(false) // what follows the sandbox is the command's
	f.register(flags)
	a.daemonFlags(flags)
	return c
}

func (a *app) exec(ctx context.Context, ref string, args []string, f commandFlags) error {
	if args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return usageErrorf("exec takes a sandbox and a command")
	}
	if err := f.check(a); err != nil {
		return err
	}
	c, id, err := a.onSandbox(ctx, ref)
	if err != nil {
		return err
	}
	s, err := c.Connect(ctx, id, 0)
	if err != nil {
		return err
	}
	return a.runIn(ctx, farSandbox(c, s), guest.Command{Args: args}, f)
}

// runIn runs a command as the flags say, to its end.
func (a *app) runIn(ctx context.Context, s attachable, cmd guest.Command, f commandFlags) error {
	a.complete(&cmd, f)
	_, fromTerminal := terminal(a.In)
	status, err := a.attach(ctx, s, cmd, f.interactive || f.tty || !fromTerminal, f.tty)
	if err != nil {
		return err
	}
	if !status.Success() {
		return &commandStatus{status}
	}
	return nil
}

// complete adds to a command where, as whom and with what the flags have it run.
func (a *app) complete(cmd *guest.Command, f commandFlags) {
	for _, e := range f.env {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			value = a.Getenv(name)
		}
		cmd.Env = withEnv(cmd.Env, name, value)
	}
	cmd.User, cmd.Dir = first(f.user, cmd.User), first(f.workdir, cmd.Dir)
}
