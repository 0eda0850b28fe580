package sandboxapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

func (s routes) GetHealth(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusNoContent)
}

func (s routes) GetReady(w http.ResponseWriter, r *http.Request) {
	if err := s.o.Sandboxes.Ready(); err != nil {
		w.Header().Set("Retry-After", "1")
		answer.Error(w, http.StatusServiceUnavailable, err.Error(), "")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s routes) GetDocument(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(s.document.JSON())
}

func (s routes) GetInfo(w http.ResponseWriter, r *http.Request) {
	page, err := s.o.Sandboxes.List(r.Context(), fleet.Filter{Owner: caller(r.Context()), Limit: 1})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	info := openapi.Info{Version: s.o.Host.Version, Arch: s.o.Host.Arch, Limits: s.o.Host.Limits, KeyNeeded: !s.keyless(r)}
	info.Engine.Name, info.Engine.Version, info.Engine.Accel = s.o.Host.Engine, s.o.Host.EngineVersion, s.o.Host.Accel
	info.Sandboxes.Running = page.Running
	answer.JSON(w, http.StatusOK, info)
}

// fail answers with an error. What is not the client's fault is logged, too.
func (s routes) fail(w http.ResponseWriter, r *http.Request, err error) {
	if status, _ := answer.Status(err, http.StatusNotFound); status == http.StatusInternalServerError && r.Context().Err() == nil {
		s.o.Log.ErrorContext(r.Context(), "request failed", slog.String("route", r.Pattern), slog.String("sandbox", r.PathValue("sandboxID")), slog.Any("error", err))
	}
	answer.Failure(w, r, err, http.StatusNotFound)
}

// read reads the body into v. An empty one, where the document allows that, leaves v as it is.
func (s routes) read(w http.ResponseWriter, r *http.Request, v any) bool {
	err := json.NewDecoder(r.Body).Decode(v)
	if err == nil || errors.Is(err, io.EOF) {
		return true
	}
	answer.Error(w, http.StatusBadRequest, fmt.Sprintf("the body: %v", err), seeDocument)
	return false
}

// refuse answers a request for what this daemon cannot do.
func refuse(w http.ResponseWriter, message, hint string) {
	answer.Error(w, http.StatusBadRequest, message, hint)
}

// sandbox returns a sandbox that the caller may see: its own, or anybody's if it needed no key.
func (s routes) sandbox(ctx context.Context, id string) (fleet.Info, error) {
	info, err := s.o.Sandboxes.Get(ctx, id)
	if err != nil {
		return info, err
	}
	if owner := caller(ctx); owner != "" && info.Owner != owner {
		return fleet.Info{}, &fleet.Error{Kind: fleet.NotFound, Message: fmt.Sprintf("there is no sandbox %s", id), Hint: "a key sees only the sandboxes that were made with it"}
	}
	if info.State == fleet.Dead {
		return info, &fleet.Error{Kind: fleet.Gone, Message: fmt.Sprintf("sandbox %s has died: %s", id, info.Reason), Hint: "make another one"}
	}
	return info, nil
}

// with does something with a sandbox that the caller may see.
func (s routes) with(w http.ResponseWriter, r *http.Request, id string, do func(fleet.Info) error) {
	info, err := s.sandbox(r.Context(), id)
	if err == nil {
		err = do(info)
	}
	if err != nil {
		s.fail(w, r, err)
	}
}
