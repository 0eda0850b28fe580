package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// build runs mmdebstrap and returns the archive that it writes.
func (s aptSpec) build(ctx context.Context, c *cache, sources string) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(s.run(ctx, c, sources, w, "-",
			// The host's own names are no part of an image.
			`--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"`,
			// The day on which a password was set is the day of the build.
			`--customize-hook=sed -i 's/^\([^:]*:[^:]*:\)[0-9]*:/\1:/' "$1/etc/shadow"`,
			"--format=tar",
		))
	}()
	return &process{r, func() {
		cancel()
		r.Close()
		<-done
	}}
}

// process is the output of a program that Close ends.
type process struct {
	io.Reader
	end func()
}

func (p *process) Close() error {
	p.end()
	return nil
}

// run runs mmdebstrap with its messages kept for the error. As root, its own
// work goes to a folder of ours and its mounts to a name space of its own, so
// that a run that is killed leaves nothing behind that the next one would not
// remove, and nothing mounted there. Others' work is in the system's own place
// for temporary files: users of the name space that mmdebstrap then makes
// can't get into our folder.
func (s aptSpec) run(ctx context.Context, c *cache, sources string, out io.Writer, target string, args ...string) error {
	tool, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return &hintError{errors.New("mmdebstrap is not installed"), "apt install mmdebstrap"}
	}
	args = append(args, "--variant=minbase", "--architectures="+s.arch)
	if len(s.packages) > 0 {
		args = append(args, "--include="+strings.Join(s.packages, ","))
	}
	args = append(args, s.suite, target)
	var stdin io.Reader
	if sources != "" {
		args = append(args, "-")
		stdin = strings.NewReader(sources)
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", time.Now().Unix()))
	cmd.Stdin = stdin
	messages := &tail{}
	cmd.Stdout, cmd.Stderr = out, messages
	if target != "-" {
		// Then the messages are what is wanted, and there is no other output.
		cmd.Stdout, cmd.Stderr = nil, io.MultiWriter(messages, out)
	}
	// It has children of its own: all of them end together. Asked nicely, it
	// undoes its mounts first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if os.Geteuid() == 0 {
		dir, remove, err := c.temp()
		if err != nil {
			return err
		}
		defer remove()
		cmd.Env = append(cmd.Env, "TMPDIR="+dir)
		if rootIsMount() {
			cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
		} else {
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
		}
	}
	// The kernel sends the death signal when the thread that started the
	// program ends, so this thread must not end before it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		if cmd.Process != nil {
			// Whoever of its children did not listen.
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return aptError(err, messages.String())
	}
	return nil
}

// rootIsMount tells whether the root directory is a mount point. In a chroot it
// may be none; then a mount namespace can't be made private, and is only as
// separate as the host's mounts are: those that are shared get to know of new ones.
func rootIsMount() bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == "/" {
			return true
		}
	}
	return false
}

// aptError turns mmdebstrap's last words into an error.
func aptError(err error, messages string) error {
	var why []string
	for line := range strings.Lines(messages) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "Err:") {
			why = append(why, strings.TrimPrefix(line, "E: "))
		}
	}
	if len(why) == 0 {
		why = []string{strings.TrimSpace(messages)}
	}
	text := strings.Join(slices.Compact(why), "; ")
	failed := fmt.Errorf("mmdebstrap: %w: %s", err, text)
	switch {
	case strings.Contains(text, "Unable to locate package"), strings.Contains(text, "no installation candidate"):
		return fmt.Errorf("%w: %w", ErrNotFound, failed)
	case strings.Contains(text, "does not have a Release file"), strings.Contains(text, "404  Not Found"):
		return &hintError{fmt.Errorf("%w: %w", ErrNotFound, failed), "is it the name of a suite?"}
	case strings.Contains(text, "chroot mode"), strings.Contains(text, "newuidmap"), strings.Contains(text, "unshare"), strings.Contains(text, "subuid"):
		return &hintError{failed, "without root it takes user namespaces: apt install uidmap, and a range of ids for the user in /etc/subuid and /etc/subgid"}
	}
	return failed
}

// tail keeps the last part of what is written to it.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 32 << 10
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*most {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-most:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }
