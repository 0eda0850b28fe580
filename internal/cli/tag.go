package cli

import (
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/store"
)

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "tag SNAPSHOT NAME",
		Short:             "Give a snapshot a name",
		Long:              "Points a name to a snapshot. A name that pointed to another one is moved. The snapshot's id is printed.",
		Args:              exactArgs("a snapshot", "a name"),
		ValidArgsFunction: a.completeFirst(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := store.CheckName(args[1]); err != nil {
				return usageErrorf("%v", err)
			}
			repo, err := a.repo(cmd.Context())
			if err != nil {
				return err
			}
			id, err := repo.Resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := repo.Tag(cmd.Context(), args[1], id); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"id": id.String(), "name": args[1]})
			}
			return a.println(id)
		},
	}
}

func (a *app) untagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "untag NAME",
		Short: "Forget a name, not the snapshot",
		Args:  exactArgs("one name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, err := a.repo(cmd.Context())
			if err != nil {
				return err
			}
			if err := repo.Untag(cmd.Context(), args[0]); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"name": args[0]})
			}
			return nil
		},
	}
}
