package fleet

import (
	"errors"
	"fmt"
	"time"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

// Kind says what an error is to the caller: whether another request, another state or another time would help.
type Kind int

// The kinds of errors.
const (
	Internal Kind = iota // ours: nothing the caller can do
	Invalid              // the request makes no sense
	NotFound             // there is no such thing
	Conflict             // not in this state: it is paused, or being paused
	Gone                 // the sandbox has died
	Quota                // the caller has enough of them already
	Busy                 // this host has no room now
)

// Error is what fleet's methods return.
type Error struct {
	Kind    Kind
	Message string
	Hint    string        // what to do; may be empty
	Retry   time.Duration // for Quota and Busy: when it may go better
	Damaged bool          // see IsDamage
	Err     error         // may be nil
}

func (e *Error) Error() string {
	s := e.Message
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf is the kind of an error, Internal if it does not say.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// damageHint is what to do about damage.
const damageHint = "spore verify lists all that is damaged; restore it from a copy, or build the template again"

// IsDamage tells whether an error is of stored bytes that are not those which were written. It is the host's then, whatever its kind.
func IsDamage(err error) bool {
	var e *Error
	return is[*block.CorruptError](err) || is[*snapshot.CorruptError](err) || errors.As(err, &e) && e.Damaged
}

// HintFor is what to do about an error; empty if it does not say.
func HintFor(err error) string {
	var e *Error
	switch {
	case errors.As(err, &e) && e.Hint != "":
		return e.Hint
	case IsDamage(err):
		return damageHint
	}
	return ""
}

func unknown(id string) error {
	return &Error{Kind: NotFound, Message: fmt.Sprintf("there is no sandbox %s", id), Hint: "list the sandboxes; one that was killed or whose time is up is gone"}
}
