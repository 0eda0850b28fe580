package compare

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sporevm/spore/internal/snapshot"
)

// MetadataChange is a field that differs. Of maps each entry is a field: env.PATH, label.team.
type MetadataChange struct {
	Field string `json:"field"`
	A     string `json:"a"` // empty where there is none
	B     string `json:"b"`
}

// metadata tells what differs of what was asked for when the snapshots were made, and of what they run on.
func metadata(a, b *snapshot.Metadata) []MetadataChange {
	out := []MetadataChange{}
	add := func(field, a, b string) {
		if a != b {
			out = append(out, MetadataChange{field, a, b})
		}
	}
	number := func(field string, a, b int64) { add(field, strconv.FormatInt(a, 10), strconv.FormatInt(b, 10)) }
	entries := func(field string, a, b map[string]string) {
		keys := maps.Clone(a)
		if keys == nil {
			keys = map[string]string{}
		}
		maps.Copy(keys, b)
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			add(field+"."+key, a[key], b[key])
		}
	}
	add("kind", string(a.Kind), string(b.Kind))
	add("arch", a.Arch, b.Arch)
	number("vcpus", int64(a.VCPUs), int64(b.VCPUs))
	number("memory_bytes", a.MemoryBytes, b.MemoryBytes)
	number("disk_bytes", a.DiskBytes, b.DiskBytes)
	add("huge_pages", strconv.FormatBool(a.HugePages), strconv.FormatBool(b.HugePages))
	add("net", a.Net, b.Net)
	add("engine", engine(a.Engine), engine(b.Engine))
	add("cpu", a.CPU.Model, b.CPU.Model)
	add("kernel", a.Kernel.Version, b.Kernel.Version)
	add("agent", a.Agent, b.Agent)
	add("image", a.Image.Digest, b.Image.Digest)
	add("user", a.Context.User, b.Context.User)
	add("workdir", a.Context.Workdir, b.Context.Workdir)
	entries("env", a.Context.Env, b.Context.Env)
	add("entrypoint", command(a.Entrypoint), command(b.Entrypoint))
	add("cmd", command(a.Cmd), command(b.Cmd))
	add("start_command", a.StartCommand, b.StartCommand)
	add("ready_command", a.ReadyCommand, b.ReadyCommand)
	entries("label", a.Labels, b.Labels)
	return out
}

func engine(e snapshot.Engine) string {
	return strings.Join(strings.Fields(e.Name+" "+e.Version+" "+e.Machine+" "+e.Accel), " ")
}

// command writes arguments such that their ends are seen.
func command(args []string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		quoted[i] = fmt.Sprintf("%q", arg)
	}
	return strings.Join(quoted, " ")
}
