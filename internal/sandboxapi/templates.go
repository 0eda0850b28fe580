package sandboxapi

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

const defaultPage = 100

// templates returns all templates, youngest first.
func (s routes) templates(ctx context.Context) ([]fleet.Template, error) {
	all, err := s.o.Sandboxes.Templates(ctx)
	return sorted(all), err
}

func sorted(all []fleet.Template) []fleet.Template {
	slices.SortFunc(all, func(a, b fleet.Template) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID.String(), b.ID.String()))
	})
	return all
}

// page cuts a page out of the templates: those after the one that token names, at most limit. It sets the header that leads to the next.
func page(w http.ResponseWriter, all []fleet.Template, limit int, token string) ([]fleet.Template, bool) {
	if token != "" {
		nanos, id, _ := strings.Cut(token, ".")
		created, err := strconv.ParseInt(nanos, 10, 64)
		if _, ierr := uuid.Parse(id); err != nil || ierr != nil {
			refuse(w, "query parameter \"nextToken\": it is none of ours", "send what came as X-Next-Token, or nothing")
			return nil, false
		}
		// The one that it names may be gone by now.
		for len(all) > 0 && cmp.Or(cmp.Compare(created, all[0].Created.UnixNano()), cmp.Compare(all[0].ID.String(), id)) <= 0 {
			all = all[1:]
		}
	}
	if limit == 0 {
		limit = defaultPage
	}
	if len(all) > limit {
		all = all[:limit]
		last := all[limit-1]
		w.Header().Set("X-Next-Token", strconv.FormatInt(last.Created.UnixNano(), 10)+"."+last.ID.String())
	}
	return all, true
}

func (s routes) ListTemplatesV1(w http.ResponseWriter, r *http.Request) {
	all, err := s.templates(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answerTemplates(w, all)
}

func (s routes) ListTemplates(w http.ResponseWriter, r *http.Request, q openapi.ListTemplatesParams) {
	all, err := s.templates(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if all, ok := page(w, all, q.Limit, q.NextToken); ok {
		answerTemplates(w, all)
	}
}

func answerTemplates(w http.ResponseWriter, all []fleet.Template) {
	out := make([]openapi.Template, len(all))
	for i, t := range all {
		out[i] = template(t)
	}
	answer.JSON(w, http.StatusOK, out)
}

func (s routes) GetTemplate(w http.ResponseWriter, r *http.Request, ref string) {
	t, err := s.o.Sandboxes.Template(r.Context(), ref)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer.JSON(w, http.StatusOK, template(t))
}

func (s routes) GetAlias(w http.ResponseWriter, r *http.Request, alias string) {
	t, err := s.o.Sandboxes.Template(r.Context(), alias)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer.JSON(w, http.StatusOK, map[string]any{"templateID": t.ID.String(), "public": true})
}

func (s routes) DeleteTemplate(w http.ResponseWriter, r *http.Request, ref string) {
	// What a sandbox sleeps in has a name too, but is no template.
	_, err := s.o.Sandboxes.Template(r.Context(), ref)
	if err == nil {
		err = s.o.Sandboxes.DeleteTemplate(r.Context(), ref)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s routes) UpdateTemplate(w http.ResponseWriter, r *http.Request, ref string) {
	var q openapi.UpdateTemplateJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	if isFalse(q.Public) {
		refuse(w, "public: templates are open to all keys of this daemon", "run another daemon, with a store of its own, for what others must not see")
		return
	}
	t, err := s.o.Sandboxes.Template(r.Context(), ref)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer.JSON(w, http.StatusOK, map[string]any{"names": notNil(t.Names)})
}

func (s routes) ListSnapshots(w http.ResponseWriter, r *http.Request, q openapi.ListSnapshotsParams) {
	all, err := s.o.Sandboxes.Snapshots(r.Context(), q.SandboxID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	all = slices.DeleteFunc(all, func(t fleet.Template) bool { return q.Name != "" && !slices.Contains(t.Names, q.Name) })
	all, ok := page(w, sorted(all), q.Limit, q.NextToken)
	if !ok {
		return
	}
	out := make([]openapi.SnapshotInfo, len(all))
	for i, t := range all {
		out[i] = openapi.SnapshotInfo{SnapshotID: t.ID.String(), Names: notNil(t.Names)}
	}
	answer.JSON(w, http.StatusOK, out)
}
