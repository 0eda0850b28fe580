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

// serve serves disk over a pair of sockets until the test ends, and checks that the server ends properly then.
func serve(t testing.TB, server *expose.NBDServer) net.Conn {
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
	ended := make(chan error, 1)
	go func() { ended <- server.ServeConn(context.Background(), ours) }()
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
