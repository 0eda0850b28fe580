package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/google/uuid"
)

// entropyBytes is how much fresh randomness a woken guest is given: the kernel's pool is 256 bits, so this is ample.
const entropyBytes = 64

// newHostname derives a host name from a sandbox's id.
func newHostname(id uuid.UUID) string { return "spore-" + hex.EncodeToString(id[:4]) }

// newEntropy returns fresh randomness for a guest.
func newEntropy() ([]byte, error) {
	p := make([]byte, entropyBytes)
	if _, err := rand.Read(p); err != nil {
		return nil, fmt.Errorf("gathering entropy for the guest: %w", err)
	}
	return p, nil
}
