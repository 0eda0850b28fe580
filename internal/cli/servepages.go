package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/snapshot"
)

const servePages = "serve-pages"

// servePagesCommand is the process behind the forks of a snapshot whose memory is served page by page.
func (a *app) servePagesCommand() *cobra.Command {
	c := &cobra.Command{
		Use:    servePages,
		Short:  "Serve a snapshot's memory to its forks",
		Hidden: true,
		Args:   exactArgs(),
		RunE:   func(cmd *cobra.Command, _ []string) error { return a.servePages(cmd.Context()) },
	}
	a.trustFlags(c.Flags())
	return c
}

func (a *app) servePages(ctx context.Context) error {
	var opened *snapshot.Snapshot
	open := func(ctx context.Context, id string) (pager.Image, error) {
		repo, err := a.repo(ctx)
		if err != nil {
			return nil, err
		}
		parsed, err := uuid.Parse(id)
		if err != nil {
			return nil, fmt.Errorf("reading what to serve: %w", err)
		}
		s, err := repo.OpenID(ctx, parsed)
		if err != nil {
			return nil, err
		}
		if s.Memory() == nil {
			return nil, errors.Join(fmt.Errorf("snapshot %s is a disk alone: it has no memory to serve", id), s.Close())
		}
		opened = s
		return s.Memory(), nil
	}
	err := pager.Serve(ctx, a.In, a.Out, open, a.log())
	if opened != nil {
		err = errors.Join(err, opened.Close())
	}
	return err
}
