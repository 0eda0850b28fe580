package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/pager/pagertest"
	"github.com/sporevm/spore/internal/snapshot"
)

// pageOwner is the name of a process that has a snapshot's memory served to a fork and says on which socket, until it is killed.
const pageOwner = "spore-page-owner"

func ownPages() error {
	ctx := context.Background()
	a := &app{Streams: Streams{Err: os.Stderr, Getenv: os.Getenv}}
	host, err := a.host(ctx)
	if err != nil {
		return err
	}
	pages := host.Pages.(*pageServer)
	pages.config.Command[0] = "spore" // this program is another one
	snap, err := host.Snapshots.OpenID(ctx, idParent)
	if err != nil {
		return err
	}
	socket, err := pages.Acquire(ctx, snap, "fork", os.Geteuid(), snapshot.Pages{}, func(error) {})
	if err != nil {
		return err
	}
	stats, err := pages.tracker.Stats(ctx, idParent.String())
	if err != nil {
		return err
	}
	for range 3 { // what nobody has any more goes now, finalizers and all
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println(stats.PID, socket)
	select {}
}

// TestPagersOfTheDead kills a process that has memory served: the next one ends its pager and the machine that the pager serves, and removes what both had.
func TestPagersOfTheDead(t *testing.T) {
	needUserfault(t)
	root := t.TempDir()
	for name, value := range map[string]string{
		"HOME": root, "SPORE_STORE": filepath.Join(root, "store"), "SNAPSHOT_CACHE_DIR": filepath.Join(root, "cache"), "SANDBOX_DIR": filepath.Join(root, "run"),
	} {
		t.Setenv(name, value)
	}
	if err := fillStore(os.Getenv("SPORE_STORE"), os.Getenv("SNAPSHOT_CACHE_DIR")); err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(pageOwner)
	owner.Stderr = os.Stderr
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	defer owner.Wait()
	defer owner.Process.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the owner says %q: %v", line, err)
	}
	var pid int
	var socket string
	if _, err := fmt.Sscan(line, &pid, &socket); err != nil {
		t.Fatal(err)
	}
	client, err := pagertest.Start(exec.Command("spore", benchProcess, "client"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := errors.Join(client.Map(pagertest.Region{Size: testMemory, PageSize: 4 << 10}), client.Hello(pagertest.Hello{Path: socket})); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Touch(pagertest.Touch{Pages: []int64{0}}); err != nil {
		t.Fatal(err)
	}
	a := &app{Streams: Streams{Err: os.Stderr, Getenv: os.Getenv}}
	if _, err := a.host(t.Context()); err != nil { // a process beside a live one
		t.Fatal(err)
	}
	if notes, err := filepath.Glob(filepath.Join(root, "cache", "scratch", notesPrefix+"*")); err != nil || len(notes) != 1 {
		t.Fatalf("with their owner alive, the folders of notes are %v (%v)", notes, err)
	}
	if _, err := client.Touch(pagertest.Touch{Pages: []int64{testMemory / 2}}); err != nil {
		t.Fatalf("with its owner alive: %v", err)
	}

	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	owner.Wait() // to its last descriptor
	if _, err := a.host(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-client.Ended():
		if !client.Killed() {
			t.Error("the machine was not killed")
		}
	case <-time.After(time.Minute):
		t.Error("the machine outlives its owner's successor")
	}
	for deadline := time.Now().Add(time.Minute); running(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the pager outlives its owner's successor")
		}
	}
	if _, err := os.Stat(filepath.Dir(socket)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pager's sockets are left: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(root, "cache", "scratch", notesPrefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}

// running tells whether a process has not ended; one that nobody has asked for the end of has.
func running(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(text), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// TestPagersThatDiedToo looks at notes of a pager that has died with its owner, and at a folder that holds something else.
func TestPagersThatDiedToo(t *testing.T) {
	s := &pageServer{config: pager.Config{Command: []string{"spore", servePages}}}
	scratch := t.TempDir()
	notes, sockets := filepath.Join(scratch, notesPrefix+"1"), filepath.Join(scratch, "spore-pager-7")
	note := fmt.Sprintf(`{"root":%q,"template":"t","pid":%d,"started":1}`, sockets, os.Getpid())
	for _, dir := range []string{notes, sockets} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(notes, "spore-pager-7.json"), []byte(note), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.abandoned(t.Context(), notes), s.abandoned(t.Context(), filepath.Join(scratch, "kernel-1"))); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(sockets); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the sockets of a pager that is no more are left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(scratch, "kernel-1")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a folder was made that is none of the pagers'")
	}
	if err := os.WriteFile(filepath.Join(notes, "spore-pager-8.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.abandoned(t.Context(), notes); err == nil || !strings.Contains(err.Error(), "spore-pager-8") {
		t.Errorf("a note that can't be read: %v", err)
	}
}
