package cli

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"github.com/sporevm/spore/internal/snapshot"
)

const seedHelp = `With --team nothing but SQL is printed: one transaction for psql, that makes the build known to E2B's control plane. It is for these tables, and may be run
again:
  envs (id text PRIMARY KEY, team_id uuid, public boolean, updated_at timestamptz)
  env_builds (id uuid PRIMARY KEY, env_id text REFERENCES envs, status text, vcpu bigint, ram_mb bigint, free_disk_size_mb bigint,
    total_disk_size_mb bigint, kernel_version text, firecracker_version text, envd_version text, finished_at timestamptz)
  env_build_assignments (env_id text REFERENCES envs, build_id uuid REFERENCES env_builds, tag text, PRIMARY KEY (env_id, tag))`

// seedFlags say what a control plane is to know of a build.
type seedFlags struct {
	team, envdVersion, tag string
	vcpu, memory, disk     int
}

func (f *seedFlags) register(flags *pflag.FlagSet, tagFlag string) {
	flags.StringVar(&f.team, "team", "", "print SQL that gives the build to the team of this UUID")
	flags.StringVar(&f.envdVersion, "envd-version", "", "agent version to record (default that of the build)")
	flags.IntVar(&f.vcpu, "vcpu", 0, "vCPUs to record (default those of the build)")
	flags.IntVar(&f.memory, "memory", 0, "memory to record, in MB (default that of the build)")
	flags.IntVar(&f.disk, "disk", 0, "disk to record, in MB (default that of the build)")
	flags.StringVar(&f.tag, tagFlag, "default", "tag to assign the build to")
}

// check refuses what can't be recorded, before anything is copied.
func (f *seedFlags) check() error {
	if f.vcpu < 0 || f.memory < 0 || f.disk < 0 {
		return usageErrorf("--vcpu, --memory and --disk can't be negative")
	}
	for _, text := range []string{f.envdVersion, f.tag} {
		if _, err := quoteSQL(text); err != nil {
			return err
		}
	}
	if _, err := uuid.Parse(f.team); f.team != "" && err != nil {
		return usageErrorf("--team %q is not a UUID", f.team)
	}
	return nil
}

func (a *app) printSeed(ctx context.Context, repo *snapshot.Repo, id uuid.UUID, f seedFlags) error {
	s, err := repo.OpenID(ctx, id)
	if err != nil {
		return err
	}
	defer s.Close()
	text, err := f.sql(s.Metadata())
	if err != nil {
		return err
	}
	if _, err := fmt.Fprint(a.Out, text); err != nil {
		return fmt.Errorf("writing the SQL: %w", err)
	}
	return nil
}

// sql is the transaction.
func (f seedFlags) sql(m *snapshot.Metadata) (string, error) {
	team, err := uuid.Parse(f.team)
	if err != nil {
		return "", usageErrorf("--team %q is not a UUID", f.team)
	}
	template := first(m.Labels["template"], m.ID.String())
	number := func(given int, recorded int64) int64 {
		if given > 0 {
			return int64(given)
		}
		return recorded
	}
	const mb = 1 << 20
	vcpu, ram, disk := number(f.vcpu, int64(m.VCPUs)), number(f.memory, m.MemoryBytes/mb), number(f.disk, m.DiskBytes/mb)
	texts := []string{template, m.Kernel.Version, strings.TrimSpace(m.Engine.Name + " " + m.Engine.Version), first(f.envdVersion, m.Agent), f.tag}
	for i, text := range texts {
		if texts[i], err = quoteSQL(text); err != nil {
			return "", err
		}
	}
	env, kernel, engine, agent, tag := texts[0], texts[1], texts[2], texts[3], texts[4]
	var b strings.Builder
	fmt.Fprintf(&b, "BEGIN;\n")
	fmt.Fprintf(&b, "INSERT INTO envs (id, team_id, public, updated_at) VALUES (%s, '%s', false, now()) ON CONFLICT (id) DO UPDATE SET updated_at = now();\n", env, team)
	fmt.Fprintf(&b, "INSERT INTO env_builds (id, env_id, status, vcpu, ram_mb, free_disk_size_mb, total_disk_size_mb, kernel_version, firecracker_version, envd_version, finished_at)"+
		" VALUES ('%s', %s, 'uploaded', %d, %d, %d, %d, %s, %s, %s, now()) ON CONFLICT (id) DO NOTHING;\n", m.ID, env, vcpu, ram, disk, disk, kernel, engine, agent)
	fmt.Fprintf(&b, "INSERT INTO env_build_assignments (env_id, build_id, tag) VALUES (%s, '%s', %s) ON CONFLICT (env_id, tag) DO UPDATE SET build_id = EXCLUDED.build_id;\n", env, m.ID, tag)
	fmt.Fprintf(&b, "COMMIT;\n")
	return b.String(), nil
}

// quoteSQL writes text as a literal that means the same whatever the server's settings are: an escape string for anything but plain characters.
func quoteSQL(text string) (string, error) {
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return "", usageErrorf("%.80q can't be stored in a database: it is not UTF-8 without zero bytes", text)
	}
	if !strings.ContainsAny(text, "\\\n\r") {
		return "'" + strings.ReplaceAll(text, "'", "''") + "'", nil
	}
	// One line a statement: psql reads a backslash at the start of a line as its own command.
	return "E'" + strings.NewReplacer(`\`, `\\`, "'", "''", "\n", `\n`, "\r", `\r`).Replace(text) + "'", nil
}
