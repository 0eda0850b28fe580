package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// note is what a Tracker writes down about a pager, for the one that comes after.
type note struct {
	Root     string     `json:"root"`
	Template string     `json:"template"`
	PID      int        `json:"pid"` // 0: not started yet
	Started  uint64     `json:"started"`
	Forks    []noteFork `json:"forks,omitempty"`
}

// noteFork is a fork in a note, with its machine's process if it has connected.
type noteFork struct {
	ID      string `json:"id"`
	PID     int    `json:"pid,omitempty"`
	Started uint64 `json:"started,omitempty"`
}

const (
	noteSuffix = ".json"
	maxNote    = 16 << 20
)

func (p *pager) notePath() string {
	return filepath.Join(p.tracker.c.StateDir, filepath.Base(p.root)+noteSuffix)
}

// note writes down how things are. A Tracker that can't write still serves.
func (p *pager) note() {
	p.noteMu.Lock()
	defer p.noteMu.Unlock()
	if p.gone || p.root == "" {
		return
	}
	n := note{Root: p.root, Template: p.template, Started: p.began}
	if p.child != nil {
		n.PID = p.child.pid
	}
	p.tracker.mu.Lock()
	for id, c := range p.claims {
		f := noteFork{ID: id}
		if c.process != nil {
			f.PID, f.Started = c.process.pid, c.started
		}
		n.Forks = append(n.Forks, f)
	}
	p.tracker.mu.Unlock()
	data, err := json.Marshal(n)
	if err == nil {
		temp := p.notePath() + ".new"
		if err = os.WriteFile(temp, data, 0o600); err == nil {
			err = os.Rename(temp, p.notePath())
		}
		if err != nil {
			os.Remove(temp) // a part of it may be there, on a disk that is full
		}
	}
	if err != nil {
		p.tracker.c.Log.Warn("a pager can't be noted: a restart would not find it", "template", p.template, "error", err)
	}
}

// unnote removes the note.
func (p *pager) unnote() error {
	p.noteMu.Lock()
	defer p.noteMu.Unlock()
	p.gone = true
	if err := os.Remove(p.notePath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the note of a pager: %w", err)
	}
	return nil
}

// readNote reads a note. What is no note is an error.
func readNote(path string) (note, error) {
	var n note
	st, err := os.Stat(path)
	if err != nil {
		return n, err
	}
	if st.Size() > maxNote {
		return n, fmt.Errorf("reading the note %s: it has %d bytes", path, st.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(data, &n); err != nil {
		return n, fmt.Errorf("reading the note %s: %w", path, err)
	}
	if filepath.Base(n.Root)+noteSuffix != filepath.Base(path) || !filepath.IsAbs(n.Root) || !strings.HasPrefix(filepath.Base(n.Root), dirPrefix) {
		return n, fmt.Errorf("reading the note %s: it is of another pager", path)
	}
	return n, nil
}
