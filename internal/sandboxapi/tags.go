package sandboxapi

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/store"
)

// defaultTag is what clients call a name without a tag.
const defaultTag = "default"

// tagged is the name that a tag of a name is.
func tagged(name, tag string) string {
	if tag == defaultTag {
		return name
	}
	return name + ":" + tag
}

// untagged is the name without its tag.
func untagged(name string) string {
	name, _, _ = strings.Cut(name, ":")
	return name
}

// checkName refuses a name that nobody may give or take away by hand.
func checkName(name string) error {
	if err := store.CheckName(name); err != nil {
		return &fleet.Error{Kind: fleet.Invalid, Message: err.Error()}
	}
	if strings.HasPrefix(name, "sandbox/") {
		return &fleet.Error{Kind: fleet.Invalid, Message: "names below sandbox/ are for what sandboxes sleep in"}
	}
	return nil
}

func (s routes) AssignTags(w http.ResponseWriter, r *http.Request) {
	var q openapi.AssignTagsJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	base := untagged(q.Target)
	t, err := s.o.Sandboxes.Template(r.Context(), strings.TrimSuffix(q.Target, ":"+defaultTag))
	for _, tag := range q.Tags {
		if err == nil {
			err = checkName(tagged(base, tag))
		}
	}
	for _, tag := range q.Tags {
		if err == nil {
			err = s.o.Snapshots.Tag(r.Context(), tagged(base, tag), t.ID)
		}
	}
	if err != nil {
		s.fail(w, r, ofSnapshots(err))
		return
	}
	answer.JSON(w, http.StatusCreated, map[string]any{"buildID": t.ID.String(), "tags": q.Tags})
}

func (s routes) RemoveTags(w http.ResponseWriter, r *http.Request) {
	var q openapi.RemoveTagsJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	for _, tag := range q.Tags {
		name := tagged(untagged(q.Name), tag)
		err := checkName(name)
		if err == nil {
			err = s.o.Snapshots.Untag(r.Context(), name)
		}
		if err != nil {
			s.fail(w, r, ofSnapshots(err))
			return
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s routes) ListTags(w http.ResponseWriter, r *http.Request, ref string) {
	t, err := s.o.Sandboxes.Template(r.Context(), ref)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	all, err := s.o.Sandboxes.Templates(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	var bases []string
	for _, name := range t.Names {
		bases = append(bases, untagged(name))
	}
	type tag struct {
		Tag     string    `json:"tag"`
		Build   string    `json:"buildID"`
		Created time.Time `json:"createdAt"`
	}
	tags := []tag{}
	for _, other := range all {
		for _, name := range other.Names {
			base, word, has := strings.Cut(name, ":")
			if !has {
				word = defaultTag
			}
			if slices.Contains(bases, base) {
				tags = append(tags, tag{word, other.ID.String(), other.Created.UTC()})
			}
		}
	}
	slices.SortFunc(tags, func(a, b tag) int { return cmp.Compare(a.Tag, b.Tag) })
	answer.JSON(w, http.StatusOK, tags)
}
