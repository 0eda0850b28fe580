package snapshot

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// NotFoundError says that nothing goes by a reference.
type NotFoundError struct {
	Ref  string   // as given
	Near []string // names that look like it, best first
}

// Error names the reference and what may have been meant.
func (e *NotFoundError) Error() string {
	hint := "`spore list` shows what there is"
	if len(e.Near) > 0 {
		hint = "did you mean " + strings.Join(e.Near, " or ") + "?"
	}
	return fmt.Sprintf("no snapshot is called %q: %s", e.Ref, hint)
}

// AmbiguousError says that a reference is the beginning of several ids.
type AmbiguousError struct {
	Ref        string
	Candidates []uuid.UUID // ascending
}

// Error lists the candidates, at most eight.
func (e *AmbiguousError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q is the beginning of %d snapshots' ids, give more of it:", e.Ref, len(e.Candidates))
	for i, id := range e.Candidates {
		if i == 8 {
			b.WriteString(" …")
			break
		}
		b.WriteString(" " + id.String())
	}
	return b.String()
}

// CorruptError says that an artifact of a snapshot is not what was published:
// damaged, exchanged or missing. Damage inside a data file is found when it is
// read, and then is a block.CorruptError, which also names the frame.
type CorruptError struct {
	ID       uuid.UUID
	Artifact string // the file's name
	Err      error  // what is wrong with it; wraps fs.ErrNotExist when it is missing
}

// Error names the snapshot and the artifact.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s of snapshot %s is damaged: %v", e.Artifact, e.ID, e.Err)
}

// Unwrap returns what is wrong with it.
func (e *CorruptError) Unwrap() error { return e.Err }

// DependentsError says that a snapshot can't be removed because others need its
// data.
type DependentsError struct {
	ID         uuid.UUID
	Dependents []uuid.UUID // youngest first: the order in which they can be removed
}

// Error lists the dependents, at most eight.
func (e *DependentsError) Error() string {
	var names []string
	for i, id := range e.Dependents {
		if i == 8 {
			names = append(names, "…")
			break
		}
		names = append(names, id.String())
	}
	return fmt.Sprintf("snapshot %s is needed by %s: remove those first, or all of them by force", e.ID, strings.Join(names, ", "))
}

// Difference is one respect in which a host is not what a snapshot needs.
type Difference struct {
	Field      string // as in metadata.json: "cpu.flags"
	Want, Have string // of the snapshot, of the host
}

// IncompatibleError says why a host can't run a snapshot.
type IncompatibleError struct {
	ID          uuid.UUID
	Differences []Difference // at least one
	Image       string       // the image that it can be built from again, "" if not known
}

// Error lists the fields that differ.
func (e *IncompatibleError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "snapshot %s can't run on this host:", e.ID)
	for i, d := range e.Differences {
		if i > 0 {
			b.WriteString(";")
		}
		fmt.Fprintf(&b, " %s is %s, here it is %s", d.Field, d.Want, d.Have)
	}
	if e.Image != "" {
		fmt.Fprintf(&b, " (it can be built again from %s)", e.Image)
	}
	return b.String()
}
