package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Metadata of a file comes in upload headers and is kept in extended attributes.
const (
	metadataHeader = "X-Metadata-"
	metadataXattr  = "user.spore."
	maxMetadata    = 64       // entries
	maxXattrs      = 64 << 10 // bytes of names, the kernel's own limit
)

// metadataOf picks the metadata out of the headers of an upload. Header names
// have no case, so keys are in lower case.
func metadataOf(h http.Header) (map[string]string, error) {
	var m map[string]string
	for name, values := range h {
		key, ok := strings.CutPrefix(name, metadataHeader)
		if !ok || key == "" {
			continue
		}
		if m == nil {
			m = map[string]string{}
		}
		if len(m) == maxMetadata {
			return nil, badRequest("more than %d pieces of metadata", maxMetadata)
		}
		m[strings.ToLower(key)] = values[0]
	}
	return m, nil
}

// setMetadata replaces the metadata of an open file.
func setMetadata(f *os.File, m map[string]string) error {
	fd := int(f.Fd())
	old, err := xattrNames(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
	if err != nil && len(m) == 0 {
		return nil // a file system without attributes has none to replace
	}
	for _, name := range old {
		if _, keep := m[strings.TrimPrefix(name, metadataXattr)]; !keep {
			unix.Fremovexattr(fd, name)
		}
	}
	for key, value := range m {
		if err := unix.Fsetxattr(fd, metadataXattr+key, []byte(value), 0); err != nil {
			return fmt.Errorf("keeping metadata %q of %s: %w", key, f.Name(), err)
		}
	}
	return nil
}

// metadataAt reads the metadata of a file. What cannot be read is not there.
func metadataAt(path string) map[string]string {
	names, err := xattrNames(func(buf []byte) (int, error) { return unix.Listxattr(path, buf) })
	if err != nil || len(names) == 0 {
		return nil
	}
	m := map[string]string{}
	buf := make([]byte, maxXattrs)
	for _, name := range names {
		if n, err := unix.Getxattr(path, name, buf); err == nil && len(m) < maxMetadata {
			m[text(strings.TrimPrefix(name, metadataXattr))] = text(string(buf[:n]))
		}
	}
	return m
}

// xattrNames lists the names of attributes that hold metadata.
func xattrNames(list func([]byte) (int, error)) ([]string, error) {
	n, err := list(nil)
	if err != nil || n == 0 {
		return nil, err
	}
	buf := make([]byte, min(n+1024, maxXattrs))
	n, err = list(buf)
	if errors.Is(err, unix.ERANGE) {
		return nil, nil // it grew meanwhile
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if bytes.HasPrefix(name, []byte(metadataXattr)) {
			names = append(names, string(name))
		}
	}
	return names, nil
}
