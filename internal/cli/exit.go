package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"syscall"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi/client"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket"
)

// The exit codes. They are part of the interface: scripts rely on them.
const (
	exitOK           = 0
	exitFailure      = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitCorrupt      = 4
	exitIncompatible = 5
	exitGuest        = 6
	exitConflict     = 7

	exitRunFailure  = 125
	exitRunNoExec   = 126
	exitRunNotFound = 127
	exitInterrupted = 130
)

const exitCodeHelp = `Exit codes:
  0    success
  1    failure
  2    wrong usage: flags, arguments, sizes
  3    no such snapshot, image or sandbox, or the reference fits several
  4    a snapshot is damaged, or does not wake as it should
  5    this host can't run the snapshot, or may not: no trusted key has signed it
  6    a start command, ready command or step failed in the guest
  7    the id is taken, others need the snapshot, or a sandbox is not in the state for that
  130  interrupted (128 + the signal's number)
run and exec exit with their command's code, with 128 + n if signal n ended the command, and with
  125  for a failure of spore itself
  126  if the command can't be executed
  127  if the command does not exist`

// Interrupted is the cause of a context that a signal cancelled.
type Interrupted struct{ Signal syscall.Signal }

func (i Interrupted) Error() string { return "interrupted: " + i.Signal.String() }

// usageError is a mistake in the command line.
type usageError struct{ why string }

func (e *usageError) Error() string { return e.why }

func usageErrorf(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// commandStatus is a guest's command that ran and did not succeed: its exit code becomes spore's.
type commandStatus struct{ guest.ExitStatus }

func (c *commandStatus) Error() string { return fmt.Sprintf("the command ended: %v", c.ExitStatus) }

// is tells whether an error of type T is in err's chain.
func is[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

// exitCode classifies an error.
func exitCode(err error) int {
	var status *commandStatus
	var interrupted Interrupted
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return status.ShellCode()
	case errors.As(err, &interrupted):
		return 128 + int(interrupted.Signal)
	case is[*usageError](err), errors.Is(err, bucket.ErrLocation):
		return exitUsage
	case is[*block.CorruptError](err), is[*snapshot.CorruptError](err), is[*canaryError](err), toldOfDamage(err):
		return exitCorrupt
	case is[*snapshot.NotFoundError](err), is[*snapshot.AmbiguousError](err), errors.Is(err, store.ErrNoSnapshot), errors.Is(err, store.ErrNoName):
		return exitNotFound
	case errors.Is(err, image.ErrNotFound), answered(err, http.StatusNotFound):
		return exitNotFound
	case errors.Is(err, image.ErrReference):
		return exitUsage
	case is[*snapshot.IncompatibleError](err), is[*snapshot.UntrustedError](err):
		return exitIncompatible
	case is[*sandbox.StartError](err), is[*sandbox.ReadyError](err), is[*sandbox.StepError](err):
		return exitGuest
	case errors.Is(err, store.ErrExist), errors.Is(err, store.ErrInUse), is[*snapshot.DependentsError](err), answered(err, http.StatusConflict):
		return exitConflict
	}
	return exitFailure
}

// answered tells whether a daemon has answered with a status of HTTP, or fleet itself with an error that would be one.
func answered(err error, status int) bool {
	var e *client.Error
	if errors.As(err, &e) {
		return e.Status == status
	}
	return is[*fleet.Error](err) && status == http.StatusNotFound && fleet.KindOf(err) == fleet.NotFound
}

// toldOfDamage tells whether a daemon has answered that what is stored is damaged.
func toldOfDamage(err error) bool {
	var e *client.Error
	return errors.As(err, &e) && e.Damaged
}

// runCode is exitCode for `run`, whose own failures must not look like its command's.
func runCode(err error) int {
	switch {
	case errors.Is(err, fs.ErrNotExist) && is[*execError](err):
		return exitRunNotFound
	case is[*execError](err):
		return exitRunNoExec
	}
	return exitRunFailure
}

// execError is a guest's command that could not be started.
type execError struct{ err error }

func (e *execError) Error() string { return e.err.Error() }
func (e *execError) Unwrap() error { return e.err }

// hintFor says what the user can do about an error that does not say so itself.
func hintFor(err error) string {
	var hinted interface{ Hint() string }
	switch {
	case errors.As(err, &hinted):
		return hinted.Hint()
	case is[*snapshot.CorruptError](err), is[*block.CorruptError](err):
		return "`spore verify` lists all that is damaged; restore the store from a copy, or remove the snapshot and create it again"
	case errors.Is(err, syscall.ENOSPC):
		return "`spore gc` lists the snapshots that nothing leads to; the folder of the cache (SNAPSHOT_CACHE_DIR) may be deleted while no machine runs"
	case errors.Is(err, os.ErrPermission) && !is[*guest.Error](err):
		return "the file or folder belongs to another user: choose others by --store, SNAPSHOT_CACHE_DIR and HOST_KERNELS_DIR"
	}
	return ""
}
