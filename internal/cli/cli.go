// Package cli is spore's command line: one file a command. Data goes to stdout, progress and errors to stderr.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sporevm/spore/internal/vmm"
)

// Streams are the world around a command.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
}

// Main runs one command line (without the program's name) and returns the exit code. Cancelling ctx interrupts the command, which then cleans up;
// a cause of type [Interrupted] chooses the exit code.
func Main(ctx context.Context, args []string, s Streams, version string) int {
	a := &app{Streams: s, version: version}
	root := a.root()
	root.SetArgs(singleDash(root, args))
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	a.progress.stop()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		var i Interrupted
		if errors.As(cause, &i) {
			err = i
		}
	}
	if err == nil {
		return exitOK
	}
	var status *commandStatus
	if !errors.As(err, &status) { // a guest's command has said itself what was wrong
		a.complain(err)
	}
	code := exitCode(err)
	if a.running && status == nil && code != exitInterrupted {
		code = runCode(err)
	}
	return code
}

// app is one invocation.
type app struct {
	Streams
	version  string
	progress display
	running  bool // the command is `run`, whose exit codes are those of the guest's command

	json, quiet, verbose bool
	storePath            string
	statePath            string // of the daemon; empty: the usual folder
	socketPath           string // of the daemon; empty: the usual one

	requireSigned bool   // open only what a key in trustedKeys has signed
	trustedKeys   string // file

	jail jailFlags

	enginesMu sync.Mutex
	engines   map[string]vmm.Engine // those other than QEMU, by version: they remember what they have found out
}

// complain prints an error, and what to do about it if it knows.
func (a *app) complain(err error) {
	fmt.Fprintf(a.Err, "spore: %v\n", err)
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(a.Err, "hint: %s\n", hint)
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "spore",
		Short:             "Turn container images into machines that freeze and wake",
		Long:              "spore turns a container image into a running virtual machine, freezes it (memory, devices, disk) into a snapshot, and wakes that snapshot as often as you like.",
		Version:           a.version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			why := fmt.Sprintf("unknown command %q", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				why += ": did you mean " + strings.Join(near, " or ") + "?"
			}
			return usageErrorf("%s", why)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		help(cmd, args)
		if cmd == root { // commands below it inherit this
			fmt.Fprintf(cmd.OutOrStdout(), "\n%s\n", exitCodeHelp)
		}
	})
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageErrorf("%v (see `%s --help`)", err, cmd.CommandPath())
	})
	root.SetVersionTemplate("spore {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&a.storePath, "store", "", "where the snapshots are: a folder, gs://bucket/prefix or s3://bucket/prefix (default $SPORE_STORE, or spore/store in the user's data folder)")
	flags.BoolVar(&a.json, "json", false, "print the result as JSON")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "no progress")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "say more about what happens")
	for _, g := range a.groups() {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title + ":"})
		for _, c := range g.commands {
			c.GroupID = g.title
			root.AddCommand(c)
		}
	}
	root.AddCommand(a.serveMountCommand(), a.serveMemoryCommand(), a.servePagesCommand(), a.benchProcessCommand())
	root.SetCompletionCommandGroupID(hostGroup)
	root.SetHelpCommandGroupID(hostGroup)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	return root
}

// group is a part of the list of commands.
type group struct {
	title    string
	commands []*cobra.Command
}

const hostGroup = "This host"

// groups are the commands that people call, in the order in which help and documentation list them.
func (a *app) groups() []group {
	return []group{
		{"Snapshots", []*cobra.Command{
			a.createCommand(), a.runCommand(), a.resumeCommand(), a.listCommand(), a.inspectCommand(), a.diffCommand(), a.mountCommand(), a.verifyCommand(),
			a.tagCommand(), a.untagCommand(), a.rmCommand(), a.squashCommand(), a.gcCommand(),
		}},
		{"Other stores and registries", []*cobra.Command{a.copyCommand(), a.pushCommand(), a.pullCommand(), a.signCommand()}},
		{"The daemon and its sandboxes", []*cobra.Command{
			a.serveCommand(), a.psCommand(), a.forkCommand(), a.execCommand(), a.pauseCommand(), a.wakeCommand(), a.logsCommand(), a.statsCommand(), a.killCommand(),
			a.portForwardCommand(), a.keyCommand(),
		}},
		{hostGroup, []*cobra.Command{a.doctorCommand(), a.benchCommand()}},
		{"Under the names and flags of E2B's orchestrator", []*cobra.Command{
			a.createBuildCommand(), a.resumeBuildCommand(), a.copyBuildCommand(), a.mountBuildCommand(), a.inspectBuildCommand(), a.showBuildDiffCommand(),
		}},
	}
}

// exactArgs asks for n arguments and says which.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageErrorf("%s takes %s, got %d arguments (see `%s --help`)", cmd.CommandPath(), describeArgs(names), len(args), cmd.CommandPath())
		}
		return nil
	}
}

func describeArgs(names []string) string {
	if len(names) == 0 {
		return "no arguments"
	}
	return strings.Join(names, " and ")
}

// printJSON writes v to stdout, indented.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.Out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// say writes a line for the user, which is not data.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.Err, format+"\n", args...)
	}
}

// log is where packages report what went wrong without stopping them.
func (a *app) log() *slog.Logger {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: level}))
}

// terminal returns the file behind a stream if it is a terminal.
func terminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// fancy tells whether stderr may be drawn on.
func (a *app) fancy() bool {
	_, tty := terminal(a.Err)
	return tty && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
}
