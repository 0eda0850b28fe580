package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/process"
)

func TestEnvironmentPrecedence(t *testing.T) {
	acc := account{Name: "alice", Home: "/home/alice", Shell: "/bin/zsh"}
	defaults := api.Context{Env: map[string]string{"PATH": "/img", "A": "image", "B": "image"}}
	env, path, err := environment(map[string]string{"B": "request", "EMPTY": ""}, acc, defaults, false)
	if err != nil || path != "/img" {
		t.Fatalf("PATH %q, %v", path, err)
	}
	want := []string{"A=image", "B=request", "EMPTY=", "HOME=/home/alice", "LOGNAME=alice", "PATH=/img", "SHELL=/bin/zsh", "USER=alice"}
	if !slices.Equal(env, want) {
		t.Errorf("%q", env)
	}
	if env, path, _ := environment(nil, acc, api.Context{}, true); path != defaultPath || !slices.Contains(env, "TERM=xterm-256color") {
		t.Errorf("%q", env)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"one/plain": 0o644, "two/plain": 0o755, "two/tool": 0o755, "three/denied": 0o600} {
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		os.WriteFile(path, nil, mode)
	}
	os.MkdirAll(dir+"/one/tool", 0o755) // a directory of the program's name
	path := strings.Join([]string{dir + "/one", dir + "/none", "two", dir + "/three"}, ":")
	for name, want := range map[string]string{
		"plain": dir + "/two/plain", "tool": dir + "/two/tool", "./two/tool": dir + "/two/tool", dir + "/two/tool": dir + "/two/tool",
	} {
		if got, err := lookPath(name, path, dir); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	for name, reason := range map[string]string{"denied": api.ReasonPermission, "nothing": api.ReasonNotFound, "./one": api.ReasonPermission, "./x": api.ReasonNotFound} {
		var e *startError
		if _, err := lookPath(name, path, dir); !errors.As(err, &e) || e.reason != reason {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWorkdirFallsBack(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(dir+"/home", 0o755)
	acc := account{Home: dir + "/home", UID: 1000, GID: 1000}
	for _, tc := range []struct{ request, workdir, want string }{
		{"", "", dir + "/home"},
		{"", dir + "/none", dir + "/home"},
		{"", dir, dir},
		{"/usr", dir, "/usr"},
		{"home", dir, dir + "/home"},
		{"~", dir, dir + "/home"},
	} {
		// The parents of a test's directory are closed to others, not the directory.
		os.Chmod(dir, 0o755)
		if got, err := workdir(tc.request, acc, api.Context{Workdir: tc.workdir}); err != nil || got != tc.want {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
	}
	acc.Home = dir + "/none"
	if got, err := workdir("", acc, api.Context{}); err != nil || got != "/" {
		t.Errorf("no home: %q, %v", got, err)
	}
	os.Mkdir(dir+"/closed", 0o700)
	if mayEnter(dir+"/closed", acc) || !mayEnter(dir+"/closed", account{}) {
		t.Error("a closed directory")
	}
}

func FuzzNewCommand(f *testing.F) {
	f.Add("sh", "-c", "A", "1", "~/x", "/home/a", "/w")
	f.Add("./x", "\x00", "A=", "", "..", "", "")
	f.Fuzz(func(t *testing.T, name, arg, key, value, cwd, home, wd string) {
		cfg := &process.ProcessConfig{Cmd: name, Args: []string{arg}, Envs: map[string]string{key: value}, Cwd: &cwd}
		cmd, err := newCommand(cfg, account{Name: "u", Home: home, Shell: "/bin/sh"}, api.Context{Workdir: wd}, false)
		if err != nil {
			return
		}
		if !filepath.IsAbs(cmd.path) || !filepath.IsAbs(cmd.dir) || len(cmd.argv) != 2 {
			t.Fatalf("%+v", cmd)
		}
		for _, s := range append(cmd.argv, cmd.env...) {
			if strings.IndexByte(s, 0) >= 0 {
				t.Fatalf("%q holds a zero byte", s)
			}
		}
	})
}

func FuzzResolvePath(f *testing.F) {
	for _, s := range []string{"a", "~", "~/a", "/a/../..", "", "\x00", "../../..", "~root"} {
		f.Add(s, "/home/u", "")
		f.Add(s, "", "/w")
	}
	f.Fuzz(func(t *testing.T, path, home, wd string) {
		got, err := resolvePath(path, account{Home: home}, api.Context{Workdir: wd})
		if err == nil && (!filepath.IsAbs(got) || filepath.Clean(got) != got) {
			t.Fatalf("%q gave %q", path, got)
		}
	})
}

func TestOnlySDKsGetAnotherShell(t *testing.T) {
	for args, want := range map[string]bool{"-l -c true": true, "-i -l": true, "": false, "-c true": false, "-l": false, "-l -c true name": false} {
		if got := isSDKShell(append([]string{"/bin/bash"}, strings.Fields(args)...)); got != want {
			t.Errorf("bash %s: %v", args, got)
		}
	}
	if isSDKShell([]string{"bash", "-l", "-c", "true"}) {
		t.Error("not by the name that SDKs use")
	}
}
