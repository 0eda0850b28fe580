package expose

import (
	"context"
	"fmt"
	"sync"
)

// Switch is a Disk whose place another can take while it is being served: a machine that goes on after its own snapshot gets the Overlay
// that Freeze returned without its NBD connection noticing.
type Switch struct {
	mu   sync.RWMutex
	disk Disk
}

// NewSwitch returns a Switch to disk.
func NewSwitch(disk Disk) *Switch { return &Switch{disk: disk} }

// Replace waits for operations under way, holds back new ones, and puts what next makes of the present disk in its place. If next fails
// the present disk stays. Both must be of one size: whoever uses the Switch has been told it.
func (s *Switch) Replace(next func(present Disk) (Disk, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	disk, err := next(s.disk)
	if err != nil {
		return err
	}
	if disk.Size() != s.disk.Size() {
		return fmt.Errorf("replacing a disk of %d bytes by one of %d", s.disk.Size(), disk.Size())
	}
	s.disk = disk
	return nil
}

// Size implements Disk.
func (s *Switch) Size() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.disk.Size()
}

// ReadAt implements Disk.
func (s *Switch) ReadAt(p []byte, offset int64) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.disk.ReadAt(p, offset)
}

// WriteAt implements Disk.
func (s *Switch) WriteAt(p []byte, offset int64) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.disk.WriteAt(p, offset)
}

// Extent implements Disk.
func (s *Switch) Extent(offset, limit int64) (int64, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.disk.Extent(offset, limit)
}

// Flush implements Disk.
func (s *Switch) Flush(ctx context.Context) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.disk.Flush(ctx)
}

// Zero implements Disk.
func (s *Switch) Zero(offset, length int64, allowHole bool) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.disk.Zero(offset, length, allowHole)
}

// Trim implements Disk.
func (s *Switch) Trim(offset, length int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.disk.Trim(offset, length)
}
