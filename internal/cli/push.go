package cli

import (
	"context"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/registry"
	"github.com/sporevm/spore/internal/store"
)

func (a *app) pushCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "push SNAPSHOT REFERENCE",
		Short: "Put a snapshot into an OCI registry",
		Long: `Puts a snapshot, with the ancestors that it needs and all signatures, into a registry as an artifact. It is verified first. What the registry has is not sent again.
The reference of what was pushed, by digest, is printed. Credentials are those of docker.`,
		Example:           "  spore push web registry.example/machines/web:v1",
		Args:              exactArgs("a snapshot", "a reference"),
		ValidArgsFunction: a.completeFirst(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.push(cmd.Context(), args[0], args[1]) },
	}
	a.trustFlags(c.Flags())
	return c
}

func (a *app) push(ctx context.Context, ref, to string) error {
	repo, err := a.repo(ctx)
	if err != nil {
		return err
	}
	snap, err := repo.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer snap.Close()
	progress := a.show()
	progress.Phase("verify")
	if err := repo.Verify(ctx, snap, progress.Advance); err != nil {
		return err
	}
	progress.Phase("push")
	digest, err := registry.Push(ctx, repo, snap.ID(), to, registry.Options{}, progress.Advance)
	if err != nil {
		return err
	}
	progress.end()
	if a.json {
		return a.printJSON(map[string]string{"id": snap.ID().String(), "reference": to, "digest": digest})
	}
	return a.println(digest)
}

func (a *app) pullCommand() *cobra.Command {
	var tag string
	c := &cobra.Command{
		Use:   "pull REFERENCE",
		Short: "Get a snapshot from an OCI registry",
		Long: `Gets a snapshot that was pushed, with the ancestors that it needs and all signatures. Everything is checked before it is published, by the registry's digests and by the
snapshot's own; what is there already is not fetched. An artifact that is no snapshot is refused, as is, with --require-signed, what no trusted key has signed. The snapshot's
id is printed.`,
		Example: "  spore pull registry.example/machines/web:v1 --tag web",
		Args:    exactArgs("a reference"),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.pull(cmd.Context(), args[0], tag) },
	}
	c.Flags().StringVarP(&tag, "tag", "t", "", "`NAME` for the snapshot")
	a.trustFlags(c.Flags())
	return c
}

// pulled is the result as --json shows it.
type pulled struct {
	ID      uuid.UUID   `json:"id"`
	Digest  string      `json:"digest"` // of the manifest
	Copied  []uuid.UUID `json:"copied"`
	Present []uuid.UUID `json:"present"`
}

func (a *app) pull(ctx context.Context, from, tag string) error {
	if tag != "" {
		if err := store.CheckName(tag); err != nil {
			return usageErrorf("--tag: %v", err)
		}
	}
	repo, err := a.repo(ctx)
	if err != nil {
		return err
	}
	progress := a.show()
	progress.Phase("pull")
	p, err := registry.Pull(ctx, repo, from, registry.Options{}, progress.Advance)
	if err != nil {
		return err
	}
	progress.end()
	snap, err := repo.OpenID(ctx, p.ID)
	if err != nil { // what was here before need not be trusted
		return err
	}
	if err := snap.Close(); err != nil {
		return err
	}
	if tag != "" {
		if err := repo.Tag(ctx, tag, p.ID); err != nil {
			return err
		}
	}
	a.say("%d copied, %d there already", len(p.Copied), len(p.Present))
	if a.json {
		return a.printJSON(pulled{p.ID, p.Digest, append([]uuid.UUID{}, p.Copied...), append([]uuid.UUID{}, p.Present...)})
	}
	return a.println(p.ID)
}
