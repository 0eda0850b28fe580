package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api"
)

// ErrNoSpace says that the guest's disk is full.
var ErrNoSpace = errors.New("no space left in the guest")

// Error is a failure that the guest reported. errors.Is sees fs.ErrNotExist,
// fs.ErrExist, fs.ErrPermission and ErrNoSpace through it where they fit.
type Error struct {
	Status  int    // of HTTP
	Message string // the guest's own words
	kind    error
}

func (e *Error) Error() string {
	if e.Message == "" {
		return "the guest answered " + http.StatusText(e.Status)
	}
	return e.Message
}

// Unwrap returns the kind of failure, or nil.
func (e *Error) Unwrap() error {
	if e.kind != nil {
		return e.kind
	}
	switch e.Status {
	case http.StatusNotFound:
		return fs.ErrNotExist
	case http.StatusForbidden:
		return fs.ErrPermission
	case http.StatusInsufficientStorage:
		return ErrNoSpace
	}
	return nil
}

// lost marks an error as the session's end if that is what it comes from.
func (c *Client) lost(err error) error {
	if err == nil || c.h2 == nil || c.h2.Err() == nil || errors.Is(err, ErrClosed) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// rpcError turns the error of a Connect call into one of ours.
func (c *Client) rpcError(err error) error {
	ce := (*connect.Error)(nil)
	if !errors.As(err, &ce) {
		return err
	}
	if !connect.IsWireError(err) {
		// Ours or the transport's: the chain says more than the code.
		return c.lost(ce.Unwrap())
	}
	e := &Error{Message: ce.Message()}
	switch ce.Code() {
	case connect.CodeNotFound:
		e.Status, e.kind = http.StatusNotFound, fs.ErrNotExist
	case connect.CodeAlreadyExists:
		e.Status, e.kind = http.StatusConflict, fs.ErrExist
	case connect.CodePermissionDenied:
		e.Status, e.kind = http.StatusForbidden, fs.ErrPermission
	case connect.CodeInvalidArgument:
		e.Status = http.StatusBadRequest
	case connect.CodeFailedPrecondition:
		e.Status = http.StatusPreconditionFailed
	case connect.CodeUnauthenticated:
		e.Status = http.StatusUnauthorized
	case connect.CodeResourceExhausted:
		e.Status = http.StatusTooManyRequests
	default:
		e.Status = http.StatusInternalServerError
	}
	switch ce.Meta().Get(api.Reason) {
	case api.ReasonNotFound:
		e.kind = fs.ErrNotExist
	case api.ReasonPermission:
		e.kind = fs.ErrPermission
	}
	return e
}
