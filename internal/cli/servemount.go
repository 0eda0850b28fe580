package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/expose"
)

// serveMountCommand is the process behind mount: it serves the disk and mounts it, says so, and unmounts when its standard input ends, however spore ended.
func (a *app) serveMountCommand() *cobra.Command {
	c := &cobra.Command{
		Use:    "serve-mount",
		Short:  "Serve a disk for mount",
		Hidden: true,
		Args:   exactArgs(),
		RunE:   func(cmd *cobra.Command, _ []string) error { return a.serveMount(cmd.Context()) },
	}
	a.trustFlags(c.Flags())
	return c
}

func (a *app) serveMount(ctx context.Context) error {
	var r mountRequest
	in := json.NewDecoder(io.LimitReader(a.In, 1<<16))
	if err := in.Decode(&r); err != nil {
		return fmt.Errorf("reading what to mount: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, a.In) // until it ends
		cancel()
	}()
	base, finish, err := a.mountBase(ctx, r)
	if err != nil {
		return err
	}
	defer finish()
	o := expose.MountOptions{Writable: r.Writable, Format: r.BlockSize, Verify: r.Verify, Via: r.Via, Mark: r.Mark}
	if a.verbose {
		o.Trace = log.New(a.Err, "", log.LstdFlags|log.Lmicroseconds)
	}
	m, err := expose.MountDisk(ctx, base, r.Dir, o)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(a.Out).Encode(mountReply{Device: m.Device(), Via: m.Via()}); err != nil {
		cancel() // nobody is there any more
	}
	<-ctx.Done()
	return m.Close(unmountPatience)
}

// mountBase opens the disk to mount.
func (a *app) mountBase(ctx context.Context, r mountRequest) (base expose.Base, finish func(), err error) {
	finish = func() {}
	base = expose.Zeros(r.Size)
	if r.Snapshot != "" {
		repo, err := a.repo(ctx)
		if err != nil {
			return nil, nil, err
		}
		id, err := uuid.Parse(r.Snapshot)
		if err != nil {
			return nil, nil, fmt.Errorf("reading what to mount: %w", err)
		}
		s, err := repo.OpenID(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		base, finish = s.Disk(), func() { s.Close() }
	}
	if !r.Writable {
		return base, finish, nil
	}
	p, err := a.paths()
	if err != nil {
		return nil, nil, err
	}
	dir := filepath.Join(p.Cache, "mounts")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("making room for what is written: %w", err)
	}
	overlay, err := expose.NewOverlay(base, dir)
	if err != nil {
		finish()
		return nil, nil, err
	}
	below := finish
	return overlay, func() { overlay.Close(); below() }, nil
}
