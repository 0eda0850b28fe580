package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Docs returns the reference of the command line: the text of each page by its file name.
func Docs() map[string]string {
	a := &app{Streams: Streams{Getenv: func(string) string { return "" }}}
	root := a.root()
	root.InitDefaultHelpFlag()
	pages := map[string]string{"README.md": indexPage(root)}
	for _, c := range root.Commands() {
		if documented(c) {
			pages[c.Name()+".md"] = commandPage(c)
		}
	}
	return pages
}

// WriteDocs writes the reference into a folder, and removes pages of commands that are no more.
func WriteDocs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing the reference: %w", err)
	}
	pages := Docs()
	old, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		return fmt.Errorf("writing the reference: %w", err)
	}
	for _, path := range old {
		if _, ok := pages[filepath.Base(path)]; !ok {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("removing an old page: %w", err)
			}
		}
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("writing the reference: %w", err)
		}
	}
	return nil
}

// documented leaves out what every cobra program has.
func documented(c *cobra.Command) bool {
	return !c.Hidden && c.Name() != "help" && c.Name() != "completion"
}

func indexPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# Commands\n\n<!-- written by `make docs` -->\n")
	for _, g := range root.Groups() {
		fmt.Fprintf(&b, "\n## %s\n\n| command | |\n|---|---|\n", strings.TrimSuffix(g.Title, ":"))
		for _, c := range root.Commands() {
			if documented(c) && c.GroupID == g.ID {
				fmt.Fprintf(&b, "| [%s](%s.md) | %s |\n", c.Name(), c.Name(), c.Short)
			}
		}
		if g.ID == hostGroup {
			b.WriteString("| completion | Print the completion script for bash, zsh, fish or powershell |\n")
		}
	}
	b.WriteString("\nData goes to stdout, progress and errors to stderr. Progress is drawn on a terminal only, and never with `NO_COLOR`.\n")
	b.WriteString("\n## Flags of all commands\n\n```\n" + flagText(root.PersistentFlags()) + "```\n")
	b.WriteString("\n## Exit codes\n\n```\n" + exitCodeHelp + "\n```\n")
	b.WriteString("\n## Environment\n\n| variable | meaning |\n|---|---|\n")
	for _, v := range environment {
		fmt.Fprintf(&b, "| `%s` | %s |\n", v[0], v[1])
	}
	return b.String()
}

// environment is what spore reads from its environment.
var environment = [][2]string{
	{"SPORE_STORE", "where the snapshots are: a folder, `gs://bucket/prefix` or `s3://bucket/prefix`; default `$XDG_DATA_HOME/spore/store`, which is `~/.local/share/spore/store`"},
	{"SNAPSHOT_CACHE_DIR", "folder for what can be made again: image disks, flat memory; default `$XDG_CACHE_HOME/spore`, which is `~/.cache/spore`"},
	{"SPORE_CACHE_LIMIT", "how much of buckets is kept in the cache, such as `20G`; default 10 GiB"},
	{"SANDBOX_DIR", "folder for live machines, a short path; default `$XDG_RUNTIME_DIR/spore`, `/run/spore` for root, `/tmp/spore-UID` without either"},
	{"HOST_KERNELS_DIR", "folder with guest kernels as `{version}/{arch}/vmlinux.bin`; default `$XDG_DATA_HOME/spore/kernels`"},
	{"TARGET_ARCH", "architecture of guests, `amd64` or `arm64`; default the host's"},
	{"FIRECRACKER_VERSIONS_DIR", "folder with versions of Firecracker as `{version}/{arch}/firecracker`; default `$XDG_DATA_HOME/spore/firecracker`"},
	{"SPORE_FIRECRACKER", "path of the Firecracker to use, whatever its version; default the newest of that folder, then what `PATH` has"},
	{"SPORE_JAILER", "path of Firecracker's jailer, for `--jail`; default beside Firecracker, then what `PATH` has"},
	{"SPORE_JAIL_USERS", "the first and the last user that jailed machines may run as; default `1879048192-1879113727`"},
	{"SPORE_JAIL_DIR", "folder for what jails share; all that hand out the same users must name the same; default `/run/spore-jails`"},
	{"SPORE_TAP_SUBNET", "addresses of the links between the host and its machines with `--net tap`, an IPv4 network; default `10.219.0.0/16`"},
	{"SPORE_TRUSTED_KEYS", "file with the public keys that `--require-signed` trusts"},
	{"SPORE_SOCKET", "the daemon's unix socket; default `daemon.sock` in the folder for live machines"},
	{"SPORE_STATE", "folder of the daemon's state; default `$XDG_DATA_HOME/spore/daemon`"},
	{"SPORE_URL", "the daemon that the commands on sandboxes speak to, such as `http://host:7070`, unless `--socket` is given; default the one of this host"},
	{"SPORE_API_KEY", "key for the daemon that `SPORE_URL` names"},
	{"OTEL_EXPORTER_OTLP_ENDPOINT", "where the daemon sends traces; this and its kin are those of OpenTelemetry; default nowhere"},
	{"NO_COLOR", "if set, nothing is drawn on the terminal"},
	{"AWS_…, GOOGLE_APPLICATION_CREDENTIALS", "credentials for buckets, the way of each service's own tools"},
	{"DOCKER_CONFIG", "folder of the docker configuration that holds registry credentials; default `~/.docker`"},
}

func commandPage(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# spore %s\n\n<!-- written by `make docs` -->\n\n%s.\n\n```\n%s\n```\n", c.Name(), strings.TrimSuffix(c.Short, "."), c.UseLine())
	if c.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", escapeLong(c.Long))
	}
	if c.Example != "" {
		fmt.Fprintf(&b, "\n## Examples\n\n```\n%s\n```\n", undent(c.Example))
	}
	flags := c.LocalNonPersistentFlags()
	flags.SortFlags = c.Flags().SortFlags // as in --help, where those that go together are neighbours
	if text := flagText(flags); text != "" {
		fmt.Fprintf(&b, "\n## Flags\n\n```\n%s```\n", text)
	}
	b.WriteString("\n[All commands](README.md), with the flags and exit codes that they share.\n")
	return b.String()
}

func flagText(f *pflag.FlagSet) string {
	if help := f.Lookup("help"); help != nil {
		help.Hidden = true
		defer func() { help.Hidden = false }()
	}
	return f.FlagUsages()
}

// escapeLong keeps indented lines, which are lists of flags, as they are.
func escapeLong(text string) string {
	var b strings.Builder
	code := false
	for line := range strings.Lines(text) {
		if indented := strings.HasPrefix(line, "  "); indented != code {
			b.WriteString("```\n")
			code = indented
		}
		b.WriteString(strings.TrimPrefix(line, "  "))
	}
	if code {
		b.WriteString("\n```")
	}
	return b.String()
}

func undent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimPrefix(line, "  "))
	}
	return b.String()
}
