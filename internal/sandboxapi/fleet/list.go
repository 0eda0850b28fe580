package fleet

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Sizes of a page of a list.
const (
	defaultPage = 100
	maxPage     = 1000
)

// List returns a page of sandboxes, ordered by when they started. Its pages go on rightly when sandboxes come and go in between.
func (f *Fleet) List(ctx context.Context, filter Filter) (Page, error) {
	from, err := parseCursor(filter.Token)
	if err != nil {
		return Page{}, err
	}
	limit := filter.Limit
	switch {
	case limit == 0:
		limit = defaultPage
	case limit < 0 || limit > maxPage:
		return Page{}, &Error{Kind: Invalid, Message: fmt.Sprintf("a page of %d: choose 1 to %d", limit, maxPage)}
	}
	match, err := f.matcher(ctx, filter)
	if err != nil {
		return Page{}, err
	}
	var chosen []Info
	page := Page{Sandboxes: []Info{}}
	for _, e := range f.all() {
		if i := e.get(); match(i) {
			chosen = append(chosen, i)
			if i.State == Running {
				page.Running++
			}
		}
	}
	order := func(a, b cursor) int {
		if filter.Oldest {
			return a.compare(b)
		}
		return b.compare(a)
	}
	slices.SortFunc(chosen, func(a, b Info) int { return order(cursorOf(a), cursorOf(b)) })
	if filter.Token != "" {
		chosen = slices.DeleteFunc(chosen, func(i Info) bool { return order(cursorOf(i), from) <= 0 })
	}
	if len(chosen) > limit {
		chosen = chosen[:limit]
		page.Next = cursorOf(chosen[limit-1]).String()
	}
	page.Sandboxes = append(page.Sandboxes, chosen...)
	return page, nil
}

// matcher returns what a filter says of a sandbox.
func (f *Fleet) matcher(ctx context.Context, filter Filter) (func(Info) bool, error) {
	states := filter.States
	if len(states) == 0 {
		states = []State{Running, Paused}
	}
	template := uuid.Nil
	if filter.Template != "" {
		var err error
		if template, err = f.resolve(ctx, trimmed(filter.Template)); err != nil && KindOf(err) != NotFound {
			return nil, err
		}
	}
	return func(i Info) bool {
		if i.State == Dead || !slices.Contains(states, i.State) || filter.Owner != "" && i.Owner != filter.Owner {
			return false
		}
		if filter.Template != "" && i.Name != trimmed(filter.Template) && i.Template != template {
			return false
		}
		for k, v := range filter.Metadata {
			if got, ok := i.Metadata[k]; !ok || got != v {
				return false
			}
		}
		return !i.Started.Before(filter.StartedAfter)
	}, nil
}

// cursor is a place in a list: that of a sandbox.
type cursor struct {
	started int64 // nanoseconds since 1970
	id      string
}

func cursorOf(i Info) cursor { return cursor{i.Started.UnixNano(), i.ID} }

func (c cursor) compare(d cursor) int {
	if c.started != d.started {
		return time.Unix(0, c.started).Compare(time.Unix(0, d.started))
	}
	return strings.Compare(c.id, d.id)
}

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%s", c.started, c.id))
}

func parseCursor(token string) (cursor, error) {
	if token == "" {
		return cursor{}, nil
	}
	bad := &Error{Kind: Invalid, Message: "the page's token is not one that a list has returned"}
	if len(token) > 256 {
		return cursor{}, bad
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return cursor{}, bad
	}
	started, id, ok := strings.Cut(string(text), ".")
	n, err := strconv.ParseInt(started, 10, 64)
	if !ok || err != nil || id == "" {
		return cursor{}, bad
	}
	return cursor{n, id}, nil
}
