package snapshot

import (
	"slices"
	"strings"

	"github.com/google/uuid"
)

// near returns up to three names that ref may have been meant for, best first.
func near(ref string, names map[string]uuid.UUID) []string {
	type candidate struct {
		name     string
		distance int
	}
	if len(ref) > 128 { // no name is as long
		return nil
	}
	var found []candidate
	limit := 1 + len(ref)/4
	for name := range names {
		d := distance(ref, name)
		if len(ref) > 2 && (strings.HasPrefix(name, ref) || strings.HasPrefix(ref, name)) {
			d = min(d, limit)
		}
		if d <= limit {
			found = append(found, candidate{name, d})
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		if a.distance != b.distance {
			return a.distance - b.distance
		}
		return strings.Compare(a.name, b.name)
	})
	var best []string
	for _, c := range found[:min(3, len(found))] {
		best = append(best, c.name)
	}
	return best
}

// distance is how many bytes must be inserted, removed or exchanged to get from a
// to b (Levenshtein's).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
