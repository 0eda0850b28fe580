package expose_test

import (
	"context"
	"net"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

func TestMain(m *testing.M) {
	if image := os.Getenv(stallingImage); image != "" {
		mountAndStall(image, os.Args[1])
		return
	}
	goleak.VerifyTestMain(m)
}

func TestOverlayItself(t *testing.T) {
	exposetest.Run(t, func(_ *testing.T, disk expose.Disk) expose.Disk { return disk })
}

func TestOverlayOnOverlay(t *testing.T) {
	exposetest.Run(t, func(t *testing.T, disk expose.Disk) expose.Disk {
		if o, ok := disk.(*expose.Overlay); ok && t.Name() != "TestOverlayOnOverlay/ReadsItsWrites" {
			next, err := o.Freeze()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { next.Close() })
			return next
		}
		return disk
	})
}

func TestSwitchItself(t *testing.T) {
	exposetest.Run(t, func(_ *testing.T, disk expose.Disk) expose.Disk { return expose.NewSwitch(disk) })
}

// connect has a server serve a client over a pair of sockets, and returns the client's end and how the server ends.
func connect(t testing.TB, ctx context.Context, server *expose.NBDServer) (net.Conn, <-chan error) {
	t.Helper()
	ours, file, err := expose.Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	ended := make(chan error, 1)
	go func() { ended <- server.ServeConn(ctx, ours) }()
	return theirs, ended
}

// serve serves disk over a pair of sockets until the test ends, and checks that the server ends properly then.
func serve(t testing.TB, server *expose.NBDServer) net.Conn {
	t.Helper()
	theirs, ended := connect(t, context.Background(), server)
	t.Cleanup(func() {
		theirs.Close()
		if err := <-ended; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return theirs
}

func TestNBD(t *testing.T) {
	exposetest.Run(t, func(t *testing.T, disk expose.Disk) expose.Disk {
		client := mustDial(t, serve(t, expose.NewNBDServer(disk, expose.NBDOptions{Name: "root"})), "root", true)
		t.Cleanup(func() { client.Close() })
		return client
	})
}
