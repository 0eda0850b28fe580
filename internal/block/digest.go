package block

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/zeebo/blake3"
)

// DigestSize is the length of a [Digest] in bytes.
const DigestSize = 32

const digestPrefix = "blake3:"

// Digest is a BLAKE3-256 digest. Digests compare with ==; the zero value is no
// digest of anything.
type Digest [DigestSize]byte

// Sum returns the digest of p.
func Sum(p []byte) Digest { return blake3.Sum256(p) }

// ParseDigest reads the form that [Digest.String] writes: "blake3:" and 64
// lower-case hexadecimal digits.
func ParseDigest(s string) (Digest, error) {
	digits, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(digits) != hex.EncodedLen(DigestSize) || strings.ToLower(digits) != digits {
		return Digest{}, fmt.Errorf("digest %.80q is not %q and 64 lower-case hexadecimal digits", s, digestPrefix)
	}
	var d Digest
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, fmt.Errorf("digest %.80q: %w", s, err)
	}
	return d, nil
}

// IsZero reports whether d is the zero value. It makes `json:",omitzero"` work.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns "blake3:" and the digest in hexadecimal.
func (d Digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// MarshalText is [Digest.String] for JSON and its kin.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is [ParseDigest] for JSON and its kin.
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}
