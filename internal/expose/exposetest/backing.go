// Package exposetest holds what every way of exposing a disk must get right, as one suite of tests, and disks to expose.
package exposetest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"

	"github.com/sporevm/spore/internal/expose"
)

// Random returns n bytes that are the same for the same seed, every fourth block of them zeros.
func Random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p)
	for at := 3 * expose.BlockSize; at < n; at += 4 * expose.BlockSize {
		clear(p[at:min(at+expose.BlockSize, n)])
	}
	return p
}

// Overlay returns a fresh overlay over content, closed when the test ends.
func Overlay(t testing.TB, content []byte) *expose.Overlay {
	t.Helper()
	o, err := expose.NewOverlay(bytes.NewReader(content), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// Faulty is a disk that fails on demand.
type Faulty struct {
	expose.Disk
	fail atomic.Pointer[func(op string, offset, length int64) error]
}

// Fail makes f decide from now on whether an operation (read, write, zero, trim, flush) fails before it does anything; nil ends that.
func (d *Faulty) Fail(f func(op string, offset, length int64) error) {
	if f == nil {
		d.fail.Store(nil)
		return
	}
	d.fail.Store(&f)
}

func (d *Faulty) check(op string, offset, length int64) error {
	if f := d.fail.Load(); f != nil {
		return (*f)(op, offset, length)
	}
	return nil
}

// ReadAt implements expose.Disk.
func (d *Faulty) ReadAt(p []byte, offset int64) (int, error) {
	if err := d.check("read", offset, int64(len(p))); err != nil {
		return 0, err
	}
	return d.Disk.ReadAt(p, offset)
}

// WriteAt implements expose.Disk.
func (d *Faulty) WriteAt(p []byte, offset int64) (int, error) {
	if err := d.check("write", offset, int64(len(p))); err != nil {
		return 0, err
	}
	return d.Disk.WriteAt(p, offset)
}

// Zero implements expose.Disk.
func (d *Faulty) Zero(offset, length int64, allowHole bool) error {
	if err := d.check("zero", offset, length); err != nil {
		return err
	}
	return d.Disk.Zero(offset, length, allowHole)
}

// Trim implements expose.Disk.
func (d *Faulty) Trim(offset, length int64) error {
	if err := d.check("trim", offset, length); err != nil {
		return err
	}
	return d.Disk.Trim(offset, length)
}

// Flush implements expose.Disk.
func (d *Faulty) Flush(ctx context.Context) error {
	if err := d.check("flush", 0, 0); err != nil {
		return err
	}
	return d.Disk.Flush(ctx)
}

// HasNoOverlayFiles fails the test if dir holds anything: overlays must leave no names behind.
func HasNoOverlayFiles(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s was left in the overlays' directory", e.Name())
	}
}
