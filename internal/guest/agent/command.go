package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/process"
)

// defaultPath is the PATH of processes where neither image nor request has one.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// startError is a command that could not run, for a reason its caller can act on.
type startError struct {
	reason string // one of api.Reason…
	err    error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// command is a process about to be.
type command struct {
	path    string
	argv    []string
	env     []string
	dir     string
	account account
}

// newCommand resolves what a request asks for against the defaults. The program
// is looked up in the PATH that the process itself will see.
func newCommand(cfg *process.ProcessConfig, acc account, defaults api.Context, tty bool) (*command, error) {
	if cfg.GetCmd() == "" {
		return nil, errors.New("no command given")
	}
	argv := append([]string{cfg.GetCmd()}, cfg.GetArgs()...)
	for _, a := range argv {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, fmt.Errorf("argument %q holds a zero byte", a)
		}
	}
	env, path, err := environment(cfg.GetEnvs(), acc, defaults, tty)
	if err != nil {
		return nil, err
	}
	dir, err := workdir(cfg.GetCwd(), acc, defaults)
	if err != nil {
		return nil, err
	}
	program, err := lookPath(cfg.GetCmd(), path, dir)
	if e := (*startError)(nil); errors.As(err, &e) && e.reason == api.ReasonNotFound && isSDKShell(argv) {
		if executable(fallbackShell) == nil {
			program, argv[0], err = fallbackShell, fallbackShell, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return &command{path: program, argv: argv, env: env, dir: dir, account: acc}, nil
}

// fallbackShell is what images without bash have: they are small, and many.
const fallbackShell = "/bin/sh"

// isSDKShell tells whether a command is one of the two that public SDKs wrap all
// in: they know no other shell. Whoever else asks for bash gets bash or an error.
func isSDKShell(argv []string) bool {
	if argv[0] != "/bin/bash" {
		return false
	}
	return len(argv) == 4 && argv[1] == "-l" && argv[2] == "-c" || slices.Equal(argv[1:], []string{"-i", "-l"})
}

// environment merges, from weak to strong: built-in, user, defaults, request.
// It also returns the resulting PATH.
func environment(request map[string]string, acc account, defaults api.Context, tty bool) (env []string, path string, err error) {
	merged := map[string]string{
		"PATH": defaultPath, "HOME": acc.Home, "USER": acc.Name, "LOGNAME": acc.Name, "SHELL": acc.Shell,
	}
	if tty {
		merged["TERM"] = "xterm-256color"
	}
	maps.Copy(merged, defaults.Env)
	maps.Copy(merged, request)
	for _, k := range slices.Sorted(maps.Keys(merged)) {
		v := merged[k]
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.IndexByte(v, 0) >= 0 {
			return nil, "", fmt.Errorf("environment variable %q is malformed", k)
		}
		env = append(env, k+"="+v)
	}
	return env, merged["PATH"], nil
}

// workdir is where a process starts. A directory that the caller named must be
// there; defaults give way to the home and that to "/".
func workdir(request string, acc account, defaults api.Context) (string, error) {
	if request != "" {
		dir, err := resolvePath(request, acc, defaults)
		if err != nil {
			return "", err
		}
		if st, err := os.Stat(dir); err != nil {
			return "", &startError{api.ReasonDirectory, fmt.Errorf("entering the working directory: %w", err)}
		} else if !st.IsDir() {
			return "", &startError{api.ReasonDirectory, fmt.Errorf("entering the working directory: %s is no directory", dir)}
		}
		return dir, nil
	}
	for _, dir := range []string{defaults.Workdir, acc.Home} {
		if filepath.IsAbs(dir) && mayEnter(dir, acc) {
			return filepath.Clean(dir), nil
		}
	}
	return "/", nil
}

// mayEnter tells whether the account can make dir its working directory, as far
// as the directory's own mode says.
func mayEnter(dir string, acc account) bool {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false
	}
	switch {
	case acc.UID == 0:
		return true
	case st.Uid == acc.UID:
		return st.Mode&0o100 != 0
	case st.Gid == acc.GID || slices.Contains(acc.Groups, st.Gid):
		return st.Mode&0o010 != 0
	}
	return st.Mode&0o001 != 0
}

// lookPath finds the program that name means to a process with the given PATH
// and working directory.
func lookPath(name, path, dir string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, executable(name)
	}
	var denied error
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		candidate := filepath.Join(d, name)
		err := executable(candidate)
		if err == nil {
			return candidate, nil
		}
		if e := (*startError)(nil); errors.As(err, &e) && e.reason == api.ReasonPermission {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &startError{api.ReasonNotFound, fmt.Errorf("%s: not found in PATH (%s)", name, path)}
}

// executable says what, if anything, speaks against running the file at path.
func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &startError{api.ReasonPermission, err}
	case err != nil:
		return &startError{api.ReasonNotFound, err}
	case st.IsDir():
		return &startError{api.ReasonPermission, fmt.Errorf("%s: is a directory", path)}
	case st.Mode()&0o111 == 0:
		return &startError{api.ReasonPermission, fmt.Errorf("%s: not executable", path)}
	}
	return nil
}
