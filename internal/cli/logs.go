package cli

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// sandboxIDLength is the length of a whole id, in hexadecimal digits.
const sandboxIDLength = 32

func (a *app) logsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "logs SANDBOX",
		Short: "Tell what happened to a sandbox of the daemon",
		Long: `Prints what happened to a sandbox, oldest first: when it was made, paused, woken and forked, and how it ended, with the end of its console if it died. What its
commands print is not kept. One that is gone is remembered for a day, under its whole id.`,
		Example:           "  spore logs 3fa9",
		Args:              exactArgs("one sandbox"),
		ValidArgsFunction: a.completeSandboxes,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.logs(cmd.Context(), args[0]) },
	}
	a.daemonFlags(c.Flags())
	return c
}

func (a *app) logs(ctx context.Context, ref string) error {
	c, id, err := a.onSandbox(ctx, ref)
	if answered(err, http.StatusNotFound) && len(ref) == sandboxIDLength {
		id, err = ref, nil // it may be gone
	}
	if err != nil {
		return err
	}
	entries, err := c.Logs(ctx, id)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(entries)
	}
	for _, e := range entries {
		line := []string{e.Timestamp.Local().Format(time.RFC3339Nano), string(e.Level), e.Message}
		for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
			value := e.Fields[name]
			if strings.ContainsAny(value, " \"\n") || !printable(value) {
				value = fmt.Sprintf("%q", value) // a console says what it likes, and our terminal is to stay as it is
			}
			line = append(line, name+"="+value)
		}
		if err := a.println(strings.Join(line, " ")); err != nil {
			return err
		}
	}
	return nil
}

// printable tells whether a text has no characters that do something to a terminal.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
}
