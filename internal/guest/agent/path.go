package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/sporevm/spore/internal/guest/api"
)

// maxPath is the kernel's limit, with its closing zero byte.
const maxPath = 4096

// resolvePath turns a path of a request into an absolute one. Relative paths
// start at the default working directory if there is one, else at the user's
// home; "~" is the home, "~/x" lies below it.
func resolvePath(path string, acc account, defaults api.Context) (string, error) {
	switch {
	case path == "":
		return "", errors.New("no path given")
	case strings.IndexByte(path, 0) >= 0:
		return "", fmt.Errorf("path %q holds a zero byte", path)
	case len(path) >= maxPath:
		return "", fmt.Errorf("path of %d bytes is longer than the %d that Linux takes", len(path), maxPath-1)
	}
	switch base := relativeBase(acc, defaults); {
	case path == "~":
		path = acc.Home
	case strings.HasPrefix(path, "~/"):
		path = filepath.Join(acc.Home, path[2:])
	case !filepath.IsAbs(path):
		path = filepath.Join(base, path)
	}
	return filepath.Clean("/" + path), nil
}

func relativeBase(acc account, defaults api.Context) string {
	if filepath.IsAbs(defaults.Workdir) {
		return defaults.Workdir
	}
	return acc.Home
}
