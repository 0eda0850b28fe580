package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

func (a *app) keyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "Make, list and revoke API keys of the daemon",
		Args:  exactArgs(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var name string
	create := &cobra.Command{
		Use:   "create",
		Short: "Make an API key and print its secret, once",
		Long:  "Makes an API key and prints its secret, which is kept nowhere: only its hash is. The daemon need not run, and if it does the key is good at once.",
		Args:  exactArgs(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.createKey(cmd.Context(), name) },
	}
	create.Flags().StringVar(&name, "name", "", "what it is for")
	list := &cobra.Command{
		Use:   "list",
		Short: "List the API keys, without their secrets",
		Args:  exactArgs(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.listKeys(cmd.Context()) },
	}
	revoke := &cobra.Command{
		Use:   "revoke KEY",
		Short: "Make an API key worthless at once",
		Long:  "Makes an API key, named by its id, worthless at once. The sandboxes that were made with it go on.",
		Args:  exactArgs("one key's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.revokeKey(cmd.Context(), args[0])
		},
	}
	for _, sub := range []*cobra.Command{create, list, revoke} {
		sub.Flags().StringVar(&a.statePath, "state", "", "folder of the daemon's state (default $SPORE_STATE, or spore/daemon in the user's data folder)")
		c.AddCommand(sub)
	}
	return c
}

// withKeys opens the keys in the daemon's state folder.
func (a *app) withKeys(ctx context.Context, f func(*fleet.Keys) error) error {
	dir, err := a.stateDir()
	if err != nil {
		return err
	}
	keys, err := fleet.OpenKeys(ctx, dir)
	if err != nil {
		return err
	}
	defer keys.Close()
	return f(keys)
}

// shownKey is a key as --json shows it.
type shownKey struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Secret  string    `json:"secret,omitempty"`
}

func (a *app) createKey(ctx context.Context, name string) error {
	return a.withKeys(ctx, func(k *fleet.Keys) error {
		key, secret, err := k.Create(ctx, name)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(shownKey{key.ID, key.Name, key.Created, secret})
		}
		a.say("key %s; its secret is shown this once:", key.ID)
		return a.println(secret)
	})
}

func (a *app) revokeKey(ctx context.Context, id string) error {
	err := a.withKeys(ctx, func(k *fleet.Keys) error { return k.Revoke(ctx, id) })
	if err == nil && a.json {
		err = a.printJSON(map[string]string{"id": id})
	}
	return err
}

func (a *app) listKeys(ctx context.Context) error {
	return a.withKeys(ctx, func(k *fleet.Keys) error {
		keys, err := k.List(ctx)
		if err != nil {
			return err
		}
		shown := make([]shownKey, len(keys))
		rows := make([][]string, len(keys))
		for i, key := range keys {
			shown[i] = shownKey{ID: key.ID, Name: key.Name, Created: key.Created}
			rows[i] = []string{key.ID, first(key.Name, "-"), age(time.Since(key.Created))}
		}
		if a.json {
			return a.printJSON(shown)
		}
		return table(a.Out, []string{"ID", "NAME", "CREATED"}, rows)
	})
}
