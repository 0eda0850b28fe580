package agent

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/google/uuid"
	"github.com/sporevm/spore/internal/guest/api"
)

// Machine is the guest as a whole: who it is, and whether it runs or stands still.
//
// What a wake needs is kept open and remembered. Under emulation a guest that has just been thawed pays for every piece of code that it runs, so the
// difference between writing to an open file and finding one is that between a quick wake and a slow one.
type Machine struct {
	o    MachineOptions
	user *UserCgroup

	random *os.File                 // the kernel's generator
	root   *os.File                 // the root directory
	files  map[string]*identityFile // by path; touched by wakes only

	mu         sync.Mutex    // one wake or quiesce at a time
	frozen     bool          // user processes stand still
	blocked    bool          // the root file system takes no writes
	thawing    chan struct{} // closed when the root file system has been thawed; nil: that was not begun
	held       bool          // an identity is in force, and a second request is to let processes run
	generation string
	hostname   string
	net        *api.Net // as configured; nil: not yet
}

// MachineOptions are what a Machine needs from its surroundings.
type MachineOptions struct {
	Version string // the agent's

	// Fatal is told why the guest can't go on, and does not return. It must be set.
	Fatal func(error)

	// SetContext is told of the context that an identity brings. Nil: contexts are ignored.
	SetContext func(api.Context)
}

// NewMachine returns the running guest.
func NewMachine(user *UserCgroup, o MachineOptions) (*Machine, error) {
	random, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the kernel's random number generator: %w", err)
	}
	root, err := os.Open("/")
	if err != nil {
		return nil, fmt.Errorf("opening the root directory: %w", err)
	}
	return &Machine{o: o, user: user, random: random, root: root, files: make(map[string]*identityFile)}, nil
}

// Generation returns the UUID of the last wake; empty before the first. A program that sees it change has been cloned or thawed.
func (m *Machine) Generation() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation
}

// checkIdentity refuses what can't have come from a sane host, before anything is changed.
func checkIdentity(id api.Identity) error {
	if _, err := uuid.Parse(id.Generation); err != nil {
		return fmt.Errorf("generation %q is not a UUID", id.Generation)
	}
	if n := len(id.Entropy); n < api.MinEntropy || n > api.MaxEntropy {
		return fmt.Errorf("%d bytes of entropy: %d to %d are needed", n, api.MinEntropy, api.MaxEntropy)
	}
	if id.Time < 0 {
		return errors.New("the time lies before 1970")
	}
	if id.Hostname != "" {
		if err := checkHostname(id.Hostname); err != nil {
			return err
		}
	}
	if id.MachineID != "" {
		if b, err := hex.DecodeString(id.MachineID); err != nil || len(b) != 16 {
			return fmt.Errorf("machine id %q is not 32 hexadecimal digits", id.MachineID)
		}
	}
	return nil
}

// checkHostname holds a name to what the kernel and name resolution take.
func checkHostname(name string) error {
	if len(name) > 64 {
		return fmt.Errorf("host name of %d bytes: 64 are allowed", len(name))
	}
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || r != '-' && r != '.' && r != '_') {
			return fmt.Errorf("host name %q holds a character that host names can't", name)
		}
	}
	return nil
}
