package guest

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api/filesystem"
)

// Change is what happened to a file.
type Change int

// The changes that a watch reports.
const (
	Created Change = iota + 1
	Written
	Removed
	Renamed // away from this name; the new name is reported as created
	ModeChanged
)

func (c Change) String() string {
	return [...]string{"unknown", "created", "written", "removed", "renamed", "mode changed"}[max(0, min(c, ModeChanged))]
}

// FileEvent is one change in a watched directory.
type FileEvent struct {
	Name   string // relative to the directory
	Change Change
}

// Watch calls f for every change in a directory of the guest, and below it if
// recursive, until ctx ends or f fails, whose error it returns. ready, unless
// nil, is called once nothing later can be missed. The removal of the directory
// itself ends the watch without error.
func (c *Client) Watch(ctx context.Context, dir string, recursive bool, ready func(), f func(FileEvent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fail := func(err error) error { return fmt.Errorf("watching %s in the guest: %w", dir, c.rpcError(err)) }
	stream, err := c.files.WatchDir(ctx, connect.NewRequest(&filesystem.WatchDirRequest{Path: dir, Recursive: recursive}))
	if err != nil {
		return fail(err)
	}
	defer stream.Close()
	started := false
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *filesystem.WatchDirResponse_Start:
			started = true
			if ready != nil {
				ready()
			}
		case *filesystem.WatchDirResponse_Filesystem:
			if err := f(FileEvent{e.Filesystem.GetName(), Change(e.Filesystem.GetType())}); err != nil {
				return err
			}
		}
	}
	if err := stream.Err(); err != nil {
		return fail(err)
	}
	if !started {
		return fail(errors.New("the guest did not begin"))
	}
	return nil
}
