package agent

import (
	"encoding/binary"
	"fmt"
	"iter"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watchMask is what a watched directory reports. Its own removal matters only
// for the root: for the others the parent tells.
const watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ONLYDIR

// inotify is an instance of the kernel's change reports.
type inotify struct {
	f    *os.File
	once sync.Once
}

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching for changes: %w", err)
	}
	return &inotify{f: os.NewFile(uintptr(fd), "inotify")}, nil
}

// control runs f with the descriptor, which stays open meanwhile.
func (i *inotify) control(f func(fd int) error) error {
	conn, err := i.f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// add watches dir and returns the descriptor of the watch.
func (i *inotify) add(dir string, self bool) (int32, error) {
	mask := uint32(watchMask)
	if self {
		mask |= unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	} else {
		mask |= unix.IN_DONT_FOLLOW // a link put in the directory's place
	}
	var wd int
	err := i.control(func(fd int) (err error) {
		wd, err = unix.InotifyAddWatch(fd, dir, mask)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("watching %s: %w", dir, err)
	}
	return int32(wd), nil
}

func (i *inotify) remove(wd int32) {
	i.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(wd))
		return err
	})
}

func (i *inotify) read(buf []byte) (int, error) { return i.f.Read(buf) }

// close ends a read that waits.
func (i *inotify) close() { i.once.Do(func() { i.f.Close() }) }

// inotifyEvent is one report of the kernel.
type inotifyEvent struct {
	wd   int32
	mask uint32
	name string // within the directory; empty: the directory itself
}

// parseInotify cuts what the kernel wrote into events. A torn tail is dropped.
func parseInotify(buf []byte) iter.Seq[inotifyEvent] {
	return func(yield func(inotifyEvent) bool) {
		for len(buf) >= unix.SizeofInotifyEvent {
			n := int(binary.NativeEndian.Uint32(buf[12:]))
			if n < 0 || n > len(buf)-unix.SizeofInotifyEvent {
				return
			}
			ev := inotifyEvent{
				wd:   int32(binary.NativeEndian.Uint32(buf)),
				mask: binary.NativeEndian.Uint32(buf[4:]),
				name: unix.ByteSliceToString(buf[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+n]),
			}
			buf = buf[unix.SizeofInotifyEvent+n:]
			if !yield(ev) {
				return
			}
		}
	}
}
