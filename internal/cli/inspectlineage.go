package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
)

// ancestor is a parent, or a parent's parent.
type ancestor struct {
	ID      uuid.UUID               `json:"id"`
	Names   []string                `json:"names"`
	Kind    snapshot.Kind           `json:"kind,omitempty"`
	Created time.Time               `json:"created,omitzero"`
	Stored  int64                   `json:"stored,omitempty"`
	Gone    bool                    `json:"gone,omitempty"`   // it was removed: nothing of it is needed
	Images  map[string]inspectImage `json:"images,omitempty"` // with --recursive
}

// lineage follows parents as far as they are there.
func lineage(ctx context.Context, repo *snapshot.Repo, id uuid.UUID, all map[uuid.UUID]snapshot.Info, f inspectFlags) ([]ancestor, error) {
	out := []ancestor{}
	for id != uuid.Nil && len(out) <= len(all) {
		info, there := all[id]
		one := ancestor{ID: id, Names: append([]string{}, info.Names...), Gone: !there}
		if there {
			one.Kind, one.Created, one.Stored = info.Metadata.Kind, info.Metadata.Created, info.Metadata.StoredBytes()
		}
		if there && f.recursive {
			s, err := repo.OpenID(ctx, id)
			if err != nil {
				return nil, err
			}
			one.Images = map[string]inspectImage{}
			for name, image := range chosen(s, f) {
				one.Images[name] = describeImage(image.Header())
			}
			s.Close()
		}
		out = append(out, one)
		if !there {
			break
		}
		id = info.Metadata.Parent
	}
	return out, nil
}

// shownAncestors is how many of a long lineage are listed without --recursive.
const shownAncestors = 5

func (a *app) lineageText(all []ancestor, f inspectFlags) error {
	rows := [][]string{}
	for i, one := range all {
		if i == shownAncestors && !f.recursive {
			rows = append(rows, []string{fmt.Sprintf("  … and %d more", len(all)-i)})
			break
		}
		created := "gone"
		if !one.Gone {
			created = age(time.Since(one.Created))
		}
		rows = append(rows, []string{"  " + one.ID.String(), cmp.Or(string(one.Kind), "-"), created, formatBytes(one.Stored), first(strings.Join(one.Names, ","), "-")})
		for _, name := range slices.Sorted(maps.Keys(one.Images)) {
			image := one.Images[name]
			rows = append(rows, []string{"    " + name, fmt.Sprintf("%d runs", image.Runs), fmt.Sprintf("%d layers", len(image.Layers)), formatBytes(image.Data), "of " + formatBytes(image.Size)})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(a.Out)
	return table(a.Out, []string{"  ANCESTOR", "KIND", "CREATED", "STORED", "NAMES"}, rows)
}
