package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// singleDash lets the build commands take long flags with one dash, as E2B's tools do: -to-build as well as --to-build.
// Other commands keep the usual rules, by which -it means -i -t.
func singleDash(root *cobra.Command, args []string) []string {
	for i, arg := range args {
		if strings.HasPrefix(arg, "-") {
			continue
		}
		for _, c := range root.Commands() {
			if c.Name() == arg && c.Annotations[fieldFlags] != "" {
				return append(append([]string{}, args[:i+1]...), doubled(c, args[i+1:])...)
			}
		}
		return args
	}
	return args
}

// fieldFlags marks commands that take long flags with one dash.
const fieldFlags = "single-dash"

// doubled gives the flags among args their second dash. The values of flags are left alone, whatever they look like.
func doubled(c *cobra.Command, args []string) []string {
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(out, args[i:]...)
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		flag := lookup(c, name)
		if flag == nil || !strings.HasPrefix(arg, "-") {
			out = append(out, arg)
			continue
		}
		if len(name) > 1 && !strings.HasPrefix(arg, "--") {
			arg = "-" + arg
		}
		out = append(out, arg)
		if flag.NoOptDefVal == "" && !hasValue && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}

func lookup(c *cobra.Command, name string) *pflag.Flag {
	sets := []*pflag.FlagSet{c.Flags(), c.InheritedFlags()}
	for _, set := range sets {
		if len(name) == 1 {
			if f := set.ShorthandLookup(name); f != nil {
				return f
			}
			continue
		}
		if f := set.Lookup(name); f != nil {
			return f
		}
	}
	return nil
}
