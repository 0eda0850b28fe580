package cli

import (
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// rawTerminal passes every key to the guest until restore is called, Ctrl-C included.
func rawTerminal(f *os.File) (restore func(), err error) {
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("preparing the terminal: %w", err)
	}
	return func() { _ = term.Restore(int(f.Fd()), state) }, nil
}

// watchSize calls changed with the terminal's size whenever it changes, until stop is called.
func watchSize(f *os.File, changed func(columns, rows int)) (stop func()) {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	done := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for {
			select {
			case <-resized:
				if columns, rows, err := term.GetSize(int(f.Fd())); err == nil {
					changed(columns, rows)
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(resized)
		close(done)
		<-finished
	}
}
