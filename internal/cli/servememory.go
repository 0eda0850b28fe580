package cli

import (
	"context"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/farmemory"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
)

// serveMemoryCommand is the process behind machines that wake from afar: it serves their memory, page by page, and ends when nobody holds the other end of
// the socket that it was born with.
func (a *app) serveMemoryCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "serve-memory",
		Short:  "Serve the memory of a snapshot for resume",
		Hidden: true,
		Args:   exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return farmemory.Serve(cmd.Context(), os.NewFile(farmemory.SocketFD, "socket"), a.repo, a.log())
		},
	}
}

// lazyMemory returns how hosts come to memory page by page: through this program, started once more for the same store and cache.
func (a *app) lazyMemory(p paths) func(context.Context, *snapshot.Snapshot, sandbox.LazyOptions) (sandbox.LazyMemory, error) {
	servers := &farmemory.Servers{Command: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", "serve-memory", "--store", p.Store)
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), "SNAPSHOT_CACHE_DIR="+p.Cache) // which may come from a flag
		if a.verbose {
			cmd.Args = append(cmd.Args, "--verbose")
			cmd.Stderr = a.Err
		}
		return cmd
	}}
	return func(ctx context.Context, s *snapshot.Snapshot, o sandbox.LazyOptions) (sandbox.LazyMemory, error) {
		m, err := servers.Open(ctx, s, farmemory.Options{Prefetch: o.Prefetch, Record: o.Record, Failed: o.Failed})
		if err != nil {
			return nil, err
		}
		return m, nil
	}
}
