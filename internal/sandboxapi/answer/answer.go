// Package answer writes what the sandbox API answers: JSON, and errors as `{code, message, hint}`.
package answer

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// ClientGone is the status of an answer that nobody waits for any more. It is in logs only.
const ClientGone = 499

// defaultRetry is when to come again, where nobody knows.
const defaultRetry = time.Second

// JSON answers with v.
func JSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"code":500,"message":"the answer has no JSON form"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(append(body, '\n')) // a client that left is no concern of ours
}

// Error answers with an error. The hint is what the client can do; empty: what one can always do about such an error.
func Error(w http.ResponseWriter, status int, message, hint string) {
	JSON(w, status, Body(status, message, hint))
}

// Body is the body of an error. A hint of the error's own is in its message too, for clients that show nothing else.
func Body(status int, message, hint string) openapi.Error {
	if hint == "" {
		return openapi.Error{Code: int32(status), Message: message, Hint: usual(status)}
	}
	return openapi.Error{Code: int32(status), Message: message + " (" + hint + ")", Hint: hint}
}

// usual is what one can do about an error of which nothing more is known.
func usual(status int) string {
	switch status {
	case http.StatusNotFound:
		return "list what there is"
	case http.StatusConflict:
		return "look at the state that it is in, and change that first"
	case http.StatusRequestEntityTooLarge:
		return "send less at once"
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return "try again after as many seconds as Retry-After says"
	case http.StatusInsufficientStorage:
		return "free some room on the daemon's disk: spore gc removes what nothing needs"
	}
	if status < http.StatusInternalServerError {
		return "see /openapi.json"
	}
	return "try again; the daemon's log says more"
}

// Failure answers with an error of the fleet's. gone is the status for a sandbox that has died: 502 where it was asked to do something itself, 404 where
// something was to be done with it.
func Failure(w http.ResponseWriter, r *http.Request, err error, gone int) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		Error(w, ClientGone, "the client went away", "")
		return
	}
	status, after := Status(err, gone)
	if after > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(after))
	}
	JSON(w, status, Of(err, gone))
}

// Of is the body for an error of the fleet's.
func Of(err error, gone int) openapi.Error {
	status, _ := Status(err, gone)
	body := Body(status, err.Error(), fleet.HintFor(err))
	body.Damaged = fleet.IsDamage(err)
	return body
}

// Status is the HTTP status for an error of the fleet's, and after how many seconds to come again: 0 if that is no use.
func Status(err error, gone int) (status, after int) {
	retry := defaultRetry
	if e := (*fleet.Error)(nil); errors.As(err, &e) && e.Retry > 0 {
		retry = e.Retry
	}
	after = max(1, int(math.Ceil(min(retry.Seconds(), 3600))))
	switch fleet.KindOf(err) {
	case fleet.Invalid:
		return http.StatusBadRequest, 0
	case fleet.NotFound:
		return http.StatusNotFound, 0
	case fleet.Conflict:
		return http.StatusConflict, 0
	case fleet.Gone:
		return gone, 0
	case fleet.Quota:
		return http.StatusTooManyRequests, after
	case fleet.Busy:
		return http.StatusServiceUnavailable, after
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return http.StatusInsufficientStorage, 0
	}
	return http.StatusInternalServerError, 0
}
