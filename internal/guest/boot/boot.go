// Package boot is what spore-agent does because it is process 1 of a guest: load drivers, mount, change into the root file system, adopt orphans,
// and carry HTTP over the one byte stream to the host.
//
// It runs from an initramfs that holds nothing but the agent and kernel modules (see the guest package), so it relies on no other program.
package boot

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// Guest is what the booted system offers to the agent's services.
type Guest struct {
	Args Args          // what the host asked for on the kernel's command line
	Took time.Duration // from the kernel's start to the end of booting
	Port net.Listener  // the stream to the host: a connection is a session
}

// Main boots the guest and runs serve, which answers the host's sessions. It does not return: the end of process 1 is the end of the machine. A
// failure is printed on the console and powers the machine off, which is how the host learns of it.
func Main(serve func(Guest) error) {
	err := run(serve)
	if err == nil {
		err = errors.New("the agent has ended")
	}
	Fatal(err)
}

// Fatal ends the machine and says why on the console.
func Fatal(err error) {
	fmt.Fprintf(os.Stderr, "spore-agent: %v\n", err)
	powerOff()
}

func run(serve func(Guest) error) error {
	if os.Getpid() != 1 {
		return errors.New("this program is process 1 of a guest; it has no other use")
	}
	// What a user could mean by these does not concern an init. They are caught and dropped, not ignored: children would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTERM, unix.SIGTTOU, unix.SIGTTIN)

	args, err := prepare()
	if err != nil {
		return err
	}
	port, err := openHost(args.Port, portDeadline)
	if err != nil {
		return err
	}
	var uptime unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &uptime); err != nil {
		return fmt.Errorf("reading the clock: %w", err)
	}
	return serve(Guest{Args: args, Took: time.Duration(uptime.Nano()), Port: port})
}

// prepare takes the machine from the kernel's hands to a mounted root file system.
func prepare() (Args, error) {
	if err := mountKernel(); err != nil {
		return Args{}, err
	}
	args, err := readArgs("/proc/cmdline")
	if err != nil {
		return Args{}, err
	}
	if err := loadModules("/modules.list", "/modules"); err != nil {
		return Args{}, err
	}
	if args.Root != "" {
		if err := switchRoot(args); err != nil {
			return Args{}, err
		}
	}
	if err := mountUser(); err != nil {
		return Args{}, err
	}
	return args, setLimits()
}

// setLimits gives the processes of the guest the file limits that a service manager would: the kernel's own are from another time.
func setLimits() error {
	limit := unix.Rlimit{Cur: 16 << 10, Max: 512 << 10}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raising the limit of open files: %w", err)
	}
	return nil
}

// powerOff ends the machine. Not every machine has a way to switch itself off; a reset ends it as well, because VMMs run with resets disabled.
//
// Nothing is synced: that could hang in the very fault that brought us here, and what a user has synced is on the disk.
func powerOff() {
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	os.Exit(1) // the kernel panics, and panic=-1 makes that a reset
}
