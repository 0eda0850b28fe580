package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi/client"
)

// alone returns the machines of this host that belong to commands rather than to a daemon. Who speaks to a daemon by SPORE_URL is not asking about this host.
func (a *app) alone() ([]sandbox.Running, error) {
	if a.Getenv("SPORE_URL") != "" && a.socketPath == "" {
		return nil, nil
	}
	all, err := sandbox.ListRunning(a.runDir())
	return slices.DeleteFunc(all, func(r sandbox.Running) bool { return r.Daemon }), err
}

// hexID is a machine's id as daemons write it.
func hexID(r sandbox.Running) string { return hex.EncodeToString(r.ID[:]) }

// aloneError says that a sandbox is a command's own, of which a daemon knows nothing.
type aloneError struct{ sandbox.Running }

func (e *aloneError) Error() string {
	return fmt.Sprintf("sandbox %s belongs to process %d alone: no daemon has it", hexID(e.Running), e.Owner)
}

// Hint says what to do about it.
func (e *aloneError) Hint() string {
	return "`spore kill` ends it and its command; what run or resume leave to a daemon by --detach can be reached by other commands"
}

// find returns the id of the daemon's sandbox that begins with ref, in whatever way that is written. failed is why there is no daemon to ask. The error is an
// *aloneError if it is a command's.
func (a *app) find(ctx context.Context, c *client.Client, failed error, ref string) (string, error) {
	prefix := strings.ToLower(strings.ReplaceAll(ref, "-", ""))
	is := func(id string) bool { return prefix != "" && strings.HasPrefix(id, prefix) }
	var theirs []string
	if failed == nil {
		all, err := c.List(ctx)
		if err != nil {
			return "", err
		}
		for _, s := range all {
			if is(s.SandboxID) {
				theirs = append(theirs, s.SandboxID)
			}
		}
	}
	alone, _ := a.alone() // what can't be read has no names
	alone = slices.DeleteFunc(alone, func(r sandbox.Running) bool { return !is(hexID(r)) })
	switch n := len(theirs) + len(alone); {
	case n > 1:
		return "", &client.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("%q begins the ids of %d sandboxes: say more of it", prefix, n)}
	case len(theirs) == 1:
		return theirs[0], nil
	case len(alone) == 1:
		return "", &aloneError{alone[0]}
	case failed != nil:
		return "", failed
	}
	return "", &client.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("there is no sandbox %q: spore ps shows those that there are", prefix)}
}

// endPatience is how long a command may take to end its machine.
const endPatience = 2 * time.Minute

// kill ends a sandbox, or the command that one belongs to.
func (a *app) kill(ctx context.Context, c *client.Client, failed error, ref string) (string, error) {
	id, err := a.find(ctx, c, failed, ref)
	if mine := (*aloneError)(nil); errors.As(err, &mine) {
		ctx, cancel := context.WithTimeoutCause(ctx, endPatience, fmt.Errorf("process %d has not ended in %v: kill -9 %d ends it, and its machine with it", mine.Owner, endPatience, mine.Owner))
		defer cancel()
		return hexID(mine.Running), mine.End(ctx)
	}
	if err != nil {
		return "", err
	}
	return id, c.Kill(ctx, id)
}
