package store

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// maxName bounds a name, in bytes.
const maxName = 128

// maxArtifact bounds an artifact's name, in bytes.
const maxArtifact = 64

// ErrBadName is wrapped by the errors of CheckName and CheckArtifact.
var ErrBadName = errors.New("not a valid name")

// CheckName tells whether name may point to a snapshot: 1 to 128 of the
// characters a-z A-Z 0-9 . _ - / : starting with a letter or digit, without empty
// or dot-only parts between slashes, and not itself readable as a UUID.
func CheckName(name string) error {
	bad := func(why string) error { return fmt.Errorf("%q is %w: %s", name, ErrBadName, why) }
	switch {
	case name == "":
		return bad("it is empty")
	case len(name) > maxName:
		return fmt.Errorf("%q… is %w: it is longer than %d bytes", name[:32], ErrBadName, maxName)
	case !alphanumeric(name[0]):
		return bad("it does not start with a letter or digit")
	case strings.Contains(name, ".."):
		return bad(`it contains ".."`)
	}
	for i := range len(name) {
		if c := name[i]; !alphanumeric(c) && !strings.ContainsRune("._-/:", rune(c)) {
			return bad(fmt.Sprintf("%q is not one of a-z A-Z 0-9 . _ - / :", c))
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			return bad("a part between slashes is empty")
		}
	}
	if _, err := uuid.Parse(name); err == nil {
		return bad("it reads as a snapshot's id")
	}
	return nil
}

// CheckArtifact tells whether name may be an object's: 1 to 64 of a-z 0-9 . _ -
// starting with a letter or digit.
func CheckArtifact(name string) error {
	if name == "" || len(name) > maxArtifact || !alphanumeric(name[0]) || strings.Contains(name, "..") {
		return fmt.Errorf("artifact %.70q: %w", name, ErrBadName)
	}
	for i := range len(name) {
		if c := name[i]; !alphanumeric(c) && !strings.ContainsRune("._-", rune(c)) || c >= 'A' && c <= 'Z' {
			return fmt.Errorf("artifact %q: %w", name, ErrBadName)
		}
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
