package sandboxapi

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"time"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// maxFiles bounds a listing, which is made in memory.
const maxFiles = 20_000

func (s routes) GetFiles(w http.ResponseWriter, r *http.Request, ref string, q openapi.GetFilesParams) {
	snap, err := s.open(r.Context(), ref)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer snap.Close()
	dir := path.Clean(cmp.Or(q.Path, "/"))
	fs, err := ext4.NewReader(snap.Disk(), snap.Disk().Size())
	found, out := false, []openapi.FileEntry{}
	if err == nil {
		err = fs.Walk(r.Context(), func(n *ext4.Node) error {
			if n.Path == dir {
				if found = n.IsDir(); !found {
					return &fleet.Error{Kind: fleet.Invalid, Message: dir + " is no directory"}
				}
				return nil
			}
			if path.Dir(n.Path) != dir {
				return nil
			}
			if len(out) == maxFiles {
				return &fleet.Error{Kind: fleet.Invalid, Message: fmt.Sprintf("%s holds more than %d names", dir, maxFiles), Hint: "look at it in a sandbox"}
			}
			out = append(out, fileEntry(n))
			return nil
		})
	}
	switch {
	case errors.Is(err, ext4.ErrForeign):
		err = &fleet.Error{Kind: fleet.Invalid, Message: err.Error()}
	case err == nil && !found:
		err = &fleet.Error{Kind: fleet.NotFound, Message: "there is no " + dir}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	slices.SortFunc(out, func(a, b openapi.FileEntry) int { return cmp.Compare(a.Name, b.Name) })
	answer.JSON(w, http.StatusOK, out)
}

func fileEntry(n *ext4.Node) openapi.FileEntry {
	kind := "other"
	switch {
	case n.IsDir():
		kind = "dir"
	case n.IsRegular():
		kind = "file"
	case n.IsSymlink():
		kind = "symlink"
	}
	return openapi.FileEntry{
		Name: path.Base(n.Path), Type: kind, Size: n.Size, Mode: int(n.Mode & 0o7777), UID: int64(n.UID), GID: int64(n.GID), Target: n.Target,
		Modified: time.Unix(n.ModTime, 0).UTC(),
	}
}
