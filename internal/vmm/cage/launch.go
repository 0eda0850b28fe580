// Package cage holds what every engine does with a VMM's process: it is born with the descriptors that it was handed and no others, as an ordinary user where it can
// be, can't outlive us, can't punch holes into the files that it maps, and is watched until its end.
package cage

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// User is the user and group that a VMM runs as when spore itself runs as root. It is a number, not a name, so that nothing has to be created
// on the host; it owns no files, and all that a VMM needs is handed to it as open descriptors.
const User = 64235

// launch starts cmd as its options say, so that it can't outlive this process and can't punch holes into the files it maps. It returns when the process runs;
// the caller waits for it.
//
// The thread that starts the process is given to it for life: the kernel ties "die with your parent" to the parent's thread, and a seccomp filter
// set on a thread is inherited by what the thread starts. The thread ends with the process and is never used for anything else.
func launch(cmd *exec.Cmd, o Options) (wait func() error, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: o.User}

	// Descriptors that our own parent left open for us are not for the VMM. Go's own are closed on exec already.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keeping descriptors from the VMM: %w", err)
	}
	started := make(chan error, 1)
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends with this goroutine
		drop, err := start(cmd, o)
		started <- err
		if err == nil {
			ended <- cmd.Wait()
			drop()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return func() error { return <-ended }, nil
}

// start starts cmd from this thread, which is given up to it. When it has ended drop is to be called.
func start(cmd *exec.Cmd, o Options) (drop func(), err error) {
	var tie *leash
	drop, leave := func() {}, func() error { return nil }
	if o.Room != nil {
		if leave, err = enterRoom(o.Room); err != nil {
			return nil, err
		}
		if tie, err = newLeash(cmd); err != nil {
			return nil, errors.Join(err, leave())
		}
		drop = tie.drop
	}
	if err = errors.Join(enter(o.NetNS), filterCalls(o.Paged)); err == nil {
		if err = cmd.Start(); err != nil {
			err = fmt.Errorf("starting %s: %w", cmd.Path, err)
		}
	}
	if o.Room == nil {
		return drop, err
	}
	err = errors.Join(err, leave())
	if err == nil {
		err = tie.fasten(cmd.Process.Pid)
	}
	if err != nil {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		drop()
		return nil, err
	}
	return drop, nil
}

// enter moves this thread, and with it what it starts, into a network namespace.
func enter(netns string) error {
	if netns == "" {
		return nil
	}
	fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: netns, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace %s: %w", netns, err)
	}
	return nil
}

// Unprivileged returns whom a VMM runs as when we are root, and nil when we are not: then it runs as our user.
func Unprivileged() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	return &syscall.Credential{Uid: User, Gid: User, Groups: kvmGroup()}
}

// kvmGroup returns the group of /dev/kvm where only its group may open it, so that the unprivileged VMM can.
func kvmGroup() []uint32 {
	var st unix.Stat_t
	if unix.Stat("/dev/kvm", &st) != nil || st.Gid == 0 || st.Mode&0o060 != 0o060 {
		return nil
	}
	return []uint32{st.Gid}
}

// filterCalls makes some system calls do nothing, successfully, in this thread and in the processes that it starts.
//
// One is fallocate(2). A guest that reports free pages makes QEMU discard them, which for a file-backed memory means: punch a hole into the *file*, then
// drop the private page. The file is shared by all machines of a snapshot and must never change; dropping the private page alone is exactly what is wanted.
//
// For paged memory it is madvise(2) with MADV_HUGEPAGE too, which QEMU gives for all memory: of a file it makes the kernel read four megabytes around every
// page that is touched, even where reading ahead is off.
func filterCalls(paged bool) error {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("no system call filter for %s hosts", runtime.GOARCH)
	}
	const offNumber, offArch, offThird = 0, 4, 32 // in struct seccomp_data; of the third argument the lower half
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	equal := func(value uint32, otherwise uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: otherwise}
	}
	is := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jt: 1}
	}
	end := func(what uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what} }
	const nothing = unix.SECCOMP_RET_ERRNO // with error number 0: success
	filter := []unix.SockFilter{
		load(offArch), is(arch), end(unix.SECCOMP_RET_KILL_PROCESS),
		load(offNumber), equal(unix.SYS_FALLOCATE, 1), end(nothing),
	}
	if paged {
		filter = append(filter, equal(unix.SYS_MADVISE, 3), load(offThird), equal(unix.MADV_HUGEPAGE, 1), end(nothing))
	}
	filter = append(filter, end(unix.SECCOMP_RET_ALLOW))
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up new privileges: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("installing the system call filter: %w", errno)
	}
	return nil
}

// SocketPair returns two connected stream sockets: ours as a file, and the one to hand over.
func SocketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the %s channel: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// MemoryFile returns an anonymous file that any process which is handed its descriptor may open again.
func MemoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making memory for the %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := errors.Join(f.Chmod(0o666), WriteAt(f, content)); err != nil {
		f.Close()
		return nil, fmt.Errorf("filling the %s: %w", name, err)
	}
	return f, nil
}

// WriteAt writes p to the beginning of f.
func WriteAt(f *os.File, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := f.WriteAt(p, 0)
	return err
}
