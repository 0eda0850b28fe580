package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/sandboxapi/client"
)

func (a *app) portForwardCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "port-forward SANDBOX [LOCAL:]PORT...",
		Short: "Reach TCP ports of a sandbox on this host",
		Long: `Listens on local ports and passes connections on to ports inside of a sandbox, until Ctrl-C. A LOCAL of 0 takes any free port; each forwarding is printed
as ADDRESS -> PORT.`,
		Example: `  spore port-forward 3fa9 8000
  spore port-forward 3fa9 8080:80 0:5432`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageErrorf("port-forward takes a sandbox and ports")
			}
			return nil
		},
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.portForward(cmd.Context(), args[0], args[1:], address)
		},
	}
	c.Flags().StringVar(&address, "address", "127.0.0.1", "local address to listen on")
	a.daemonFlags(c.Flags())
	return c
}

// forwarding is a local port and the one in the sandbox.
type forwarding struct{ local, remote int }

// forwarded is a forwarding that listens, as --json shows it.
type forwarded struct {
	Address string `json:"address"` // on this host
	Port    int    `json:"port"`    // in the sandbox
}

func parseForwarding(text string) (forwarding, error) {
	local, remote, two := strings.Cut(text, ":")
	if !two {
		remote = local
	}
	l, err1 := strconv.Atoi(local)
	r, err2 := strconv.Atoi(remote)
	if err1 != nil || err2 != nil || l < 0 || l > 65535 || r < 1 || r > 65535 || !two && l == 0 {
		return forwarding{}, usageErrorf("%q is not [LOCAL:]PORT", text)
	}
	return forwarding{l, r}, nil
}

func (a *app) portForward(ctx context.Context, ref string, ports []string, address string) error {
	var wanted []forwarding
	for _, p := range ports {
		f, err := parseForwarding(p)
		if err != nil {
			return err
		}
		wanted = append(wanted, f)
	}
	c, id, err := a.onSandbox(ctx, ref)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shown := []forwarded{}
	for _, f := range wanted {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(f.local)))
		if err != nil {
			return fmt.Errorf("listening for port %d: %w", f.remote, err)
		}
		defer l.Close()
		if !a.json {
			if err := a.println(fmt.Sprintf("%s -> %d", l.Addr(), f.remote)); err != nil {
				return err
			}
		}
		shown = append(shown, forwarded{l.Addr().String(), f.remote})
		context.AfterFunc(ctx, func() { l.Close() })
		wg.Go(func() { a.forward(ctx, c, id, l, f.remote) })
	}
	if a.json {
		if err := a.printJSON(shown); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// forward passes on what comes to a listener, until that is closed.
func (a *app) forward(ctx context.Context, c *client.Client, id string, l net.Listener, port int) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		wg.Go(func() {
			defer conn.Close()
			there, err := c.DialPort(ctx, id, port)
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					a.say("port %d: %v", port, err)
				}
				return
			}
			defer there.Close()
			defer context.AfterFunc(ctx, func() { conn.Close(); there.Close() })()
			splice(conn, there)
		})
	}
}

// splice copies both ways until both have ended; each end is passed on by itself.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { copyAndEnd(a, b) })
	copyAndEnd(b, a)
	wg.Wait()
}

func copyAndEnd(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}
