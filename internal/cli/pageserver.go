package cli

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/snapshot"
)

// pageServer serves memory by userfaultfd, through this program, started once more for each template. Nothing is made before the first machine wants it.
type pageServer struct {
	config pager.Config
	// workDir makes the folder for the notes of pagers. It is this process's alone: its machines end with it, so that who comes after it ends their pagers.
	workDir func(prefix string) (string, func() error, error)

	mu      sync.Mutex
	tracker *pager.Tracker
	failed  map[string]func(error) // by fork
}

func (a *app) pageServer(p paths, log *slog.Logger) *pageServer {
	command := []string{"/proc/self/exe", servePages, "--store", p.Store}
	if a.requireSigned {
		command = append(command, "--require-signed", "--trusted-keys", a.trustedKeys)
	}
	s := &pageServer{failed: map[string]func(error){}}
	s.config = pager.Config{Command: command, Failed: s.tell, Log: log}
	return s
}

// notesPrefix begins the names of folders with notes of pagers.
const notesPrefix = "pagers-"

// abandoned ends the pagers that a process has left which died, and with them the machines that still wait for their memory. dir was its working folder; one
// without notes is passed over.
func (s *pageServer) abandoned(ctx context.Context, dir string) error {
	if !strings.HasPrefix(filepath.Base(dir), notesPrefix) {
		return nil
	}
	config := s.config
	config.StateDir = dir
	tracker, err := pager.NewTracker(config)
	if err != nil {
		return err
	}
	_, err = tracker.Adopt(ctx, func(_, _ string) bool { return false })
	return err
}

// start makes the tracker, once. s.mu is held.
func (s *pageServer) start() error {
	if s.tracker != nil {
		return nil
	}
	dir, _, err := s.workDir(notesPrefix) // the sweep after our end removes it
	if err != nil {
		return err
	}
	s.config.StateDir = dir
	s.tracker, err = pager.NewTracker(s.config)
	return err
}

// Acquire implements sandbox.PageServer.
func (s *pageServer) Acquire(ctx context.Context, snap *snapshot.Snapshot, fork string, user int, ahead snapshot.Pages, failed func(error)) (string, error) {
	s.mu.Lock()
	err := s.start()
	if err == nil {
		s.failed[fork] = failed
	}
	s.mu.Unlock()
	if err != nil {
		return "", err
	}
	f := pager.Fork{ID: fork, UID: user}
	for offset, length := range ahead.Bytes() {
		f.Prefetch = append(f.Prefetch, pager.Range{Offset: offset, Length: length})
	}
	socket, err := s.tracker.Acquire(ctx, snap.ID().String(), f)
	if err != nil {
		s.forget(fork)
	}
	return socket, err
}

// Release implements sandbox.PageServer.
func (s *pageServer) Release(fork string) error {
	s.forget(fork)
	return s.tracker.Release(fork)
}

func (s *pageServer) forget(fork string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.failed, fork)
}

// tell passes on that a fork's memory can't be had any more.
func (s *pageServer) tell(fork string, err error) {
	s.mu.Lock()
	failed := s.failed[fork]
	s.mu.Unlock()
	if failed != nil {
		failed(err)
	}
}
