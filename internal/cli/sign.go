package cli

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sporevm/spore/internal/snapshot"
)

// maxKeyFile bounds what is read of a file with keys, in bytes.
const maxKeyFile = 1 << 20

func (a *app) signCommand() *cobra.Command {
	var keyFile string
	c := &cobra.Command{
		Use:   "sign --key FILE SNAPSHOT...",
		Short: "Sign snapshots, for others to trust",
		Long: `Signs snapshots with an ed25519 key. The signature is of the snapshot's digest, which is that of all its content; it lies beside the snapshot and is copied with it.
Several keys may sign one snapshot. Everything is verified first: what is signed is whole.

Those who take --require-signed with --trusted-keys FILE (or SPORE_TRUSTED_KEYS) open only what one of the keys in the file has signed. Keys are PEM files:
  openssl genpkey -algorithm ed25519 -out key.pem
  openssl pkey -in key.pem -pubout >> trusted.pem`,
		Example: "  spore sign --key key.pem web\n  spore run --require-signed --trusted-keys trusted.pem web -- uname -a",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || keyFile == "" {
				return usageErrorf("sign takes --key FILE and at least one snapshot")
			}
			return nil
		},
		ValidArgsFunction: a.completeSnapshots,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.sign(cmd.Context(), keyFile, args) },
	}
	c.Flags().StringVar(&keyFile, "key", "", "`FILE` with the private key, PEM")
	return c
}

func (a *app) sign(ctx context.Context, keyFile string, refs []string) error {
	data, err := readKeyFile(keyFile)
	if err != nil {
		return err
	}
	key, err := snapshot.ParsePrivateKey(data)
	if err != nil {
		return fmt.Errorf("reading the key %s: %w", keyFile, err)
	}
	repo, err := a.repo(ctx)
	if err != nil {
		return err
	}
	type signed struct {
		ID     string `json:"id"`
		Digest string `json:"digest"`
	}
	all := []signed{}
	for _, ref := range refs {
		s, err := repo.Open(ctx, ref)
		if err != nil {
			return err
		}
		progress := a.showSlow()
		progress.Phase("verify")
		err = repo.Verify(ctx, s, progress.Advance)
		progress.stop()
		if err == nil {
			err = repo.Sign(ctx, s, key)
		}
		s.Close()
		if err != nil {
			return err
		}
		all = append(all, signed{ID: s.ID().String(), Digest: s.Digest().String()})
	}
	if a.json {
		return a.printJSON(all)
	}
	for _, s := range all {
		if err := a.println(s.ID); err != nil {
			return err
		}
	}
	return nil
}

// trustFlags are for commands that open snapshots.
func (a *app) trustFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&a.requireSigned, "require-signed", false, "open only snapshots that a trusted key has signed")
	flags.StringVar(&a.trustedKeys, "trusted-keys", "", "`FILE` with the trusted public keys, PEM (default $SPORE_TRUSTED_KEYS)")
}

// trust returns what the flags say of trust.
func (a *app) trust() ([]snapshot.Option, error) {
	file := first(a.trustedKeys, a.Getenv("SPORE_TRUSTED_KEYS"))
	switch {
	case a.requireSigned && file == "":
		return nil, usageErrorf("--require-signed needs --trusted-keys FILE")
	case !a.requireSigned && a.trustedKeys != "":
		return nil, usageErrorf("--trusted-keys goes with --require-signed")
	case !a.requireSigned:
		return nil, nil
	}
	data, err := readKeyFile(file)
	if err != nil {
		return nil, err
	}
	var keys []ed25519.PublicKey
	if keys, err = snapshot.ParsePublicKeys(data); err != nil {
		return nil, fmt.Errorf("reading the trusted keys %s: %w", file, err)
	}
	return []snapshot.Option{snapshot.Trust(keys)}, nil
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening a key file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(data) > maxKeyFile {
		err = fmt.Errorf("it is longer than %d bytes", maxKeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key file %s: %w", path, err)
	}
	return data, nil
}
