// Command spore turns container images into machines that freeze and wake.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sporevm/spore/internal/cli"
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		// The first signal asks the command to stop and clean up; a second one does not wait for it. What is left then is removed at the next start.
		first := (<-signals).(syscall.Signal)
		cancel(cli.Interrupted{Signal: first})
		again := (<-signals).(syscall.Signal)
		os.Exit(128 + int(again))
	}()
	streams := cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
	os.Exit(cli.Main(ctx, os.Args[1:], streams, version))
}
