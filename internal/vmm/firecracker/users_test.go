package firecracker

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSweepManyUsers sweeps after more machines than this process may have descriptors.
func TestSweepManyUsers(t *testing.T) {
	j := Jail{Base: t.TempDir(), FirstID: 72100, IDs: 1500}
	if err := os.MkdirAll(j.users(), 0o700); err != nil {
		t.Fatal(err)
	}
	for id := range j.IDs {
		if err := os.WriteFile(filepath.Join(j.users(), strconv.Itoa(int(j.FirstID+id))), []byte("\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: min(before.Cur, 1000), Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	if err := j.Sweep(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []uint32{0, j.IDs - 1} {
		u, err := j.takeID(j.FirstID + id)
		if err != nil || u == nil || u.left {
			t.Fatalf("user %d was not swept: %+v, %v", j.FirstID+id, u, err)
		}
		u.Close()
	}
}
