package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/pager/pagertest"
	"github.com/sporevm/spore/internal/pager/uffd"
)

// Process is the body of a process that a suite measures with. The first argument chooses its part:
// "client" touches memory that somebody else serves; "bare" serves it, from a flat file and without any care.
func Process(args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "client":
		return pagertest.Main(in, out)
	case len(args) == 3 && args[0] == "bare":
		return serveBare(args[1], args[2], in, out)
	}
	return fmt.Errorf("no part in a measurement is called %q", args)
}

// bareReport is what a bare process says: empty when it listens, and then with each fill.
type bareReport struct {
	Filled time.Duration
}

// serveBare answers the faults of one machine after another, each by one copy from a flat file that is mapped: the floor for a pager that is a process. A
// line "fill" on its input has the next machine's memory filled at once, by the same copies one after another.
func serveBare(socket, image string, in io.Reader, out io.Writer) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	orders, reports := json.NewDecoder(in), json.NewEncoder(out)
	if err := reports.Encode(bareReport{}); err != nil {
		return err
	}
	for {
		var fill bool
		if err := orders.Decode(&fill); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		fd, base, err := bareHello(l)
		if err != nil {
			return err
		}
		var report bareReport
		if fill {
			begin := time.Now()
			for at := 0; at < len(data); at += pager.FaultAround {
				if _, err := fd.Copy(base+uint64(at), data[at:at+pager.FaultAround]); err != nil {
					return err
				}
			}
			report.Filled = time.Since(begin)
		}
		if err := reports.Encode(report); err != nil {
			return err
		}
		bareLoop(fd, base, data)
		fd.Close()
	}
}

// bareHello takes over a machine's memory, which is one region.
func bareHello(l *net.UnixListener) (uffd.FD, uint64, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return -1, 0, err
	}
	defer conn.Close()
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return -1, 0, err
	}
	var regions []struct {
		Base uint64 `json:"base_host_virt_addr"`
	}
	if err := json.Unmarshal(buf[:n], &regions); err != nil {
		return -1, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 || len(regions) != 1 {
		return -1, 0, fmt.Errorf("%d regions and %d control messages: %w", len(regions), len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, 0, err
	}
	return uffd.FD(fds[0]), regions[0].Base, nil
}

// bareLoop answers faults until the machine is gone.
func bareLoop(fd uffd.FD, base uint64, data []byte) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var messages [1]uffd.Message
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100); err != nil && err != unix.EINTR {
			return
		}
		n, err := fd.Read(messages[:])
		if err != nil {
			return
		}
		if n == 0 {
			if _, err := fd.Copy(base, data[:pager.FaultAround]); err == unix.ESRCH {
				return
			}
			continue
		}
		at := (messages[0].Address() - base) / pager.FaultAround * pager.FaultAround
		if _, err := fd.Copy(base+at, data[at:at+pager.FaultAround]); err == unix.ESRCH {
			return
		}
	}
}
