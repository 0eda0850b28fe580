package fctest

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// versionVariable makes a process that calls Main be a Firecracker of that version.
const versionVariable = "SPORE_FCTEST_VERSION"

// Main is to be called first by the TestMain of a package that uses Install. In the processes of machines it does not return.
func Main() {
	version := os.Getenv(versionVariable)
	if version == "" {
		return
	}
	if err := serve(version, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "firecracker for tests:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Install makes a folder of versions, {version}/{arch}/firecracker, whose programs are this test's own.
func Install(t *testing.T, arch string, versions ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "fctest") // not TempDir: the VMM may be another user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "program")
	if err := errors.Join(os.Chmod(dir, 0o755), copyFile(self, program)); err != nil {
		t.Fatal(err)
	}
	for _, version := range versions {
		path := filepath.Join(dir, version, arch, "firecracker")
		script := fmt.Sprintf("#!/bin/sh\n%s=%s exec %s \"$@\"\n", versionVariable, version, program)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(script), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// serve is the program.
func serve(version string, args []string) error {
	flags := flag.NewFlagSet("firecracker", flag.ContinueOnError)
	api := flags.String("api-sock", "/run/firecracker.socket", "")
	id := flags.String("id", "anonymous-instance", "")
	logPath := flags.String("log-path", "", "")
	flags.String("level", "Info", "")
	for _, name := range []string{"start-time-us", "start-time-cpu-us", "parent-cpu-time-us"} { // what a jailer says
		flags.String(name, "", "")
	}
	metricsPath := flags.String("metrics-path", "", "")
	askVersion := flags.Bool("version", false, "")
	askFormat := flags.Bool("snapshot-version", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *askVersion {
		fmt.Printf("Firecracker v%s\n\n", version)
		return nil
	}
	minor := 0
	if n, _ := fmt.Sscanf(version, "1.%d.", &minor); n != 1 {
		return fmt.Errorf("version %q", version)
	}
	if *askFormat {
		fmt.Printf("v%d.0.0\n", minor)
		return nil
	}
	d, err := readDescription()
	if err != nil {
		return err
	}
	m := &machine{id: *id, format: minor, taps: map[string]string{}}
	for path, file := range map[string]**os.File{*logPath: &m.log, *metricsPath: &m.metrics} {
		if path != "" {
			if *file, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err != nil {
				return err
			}
		}
	}
	listener, err := net.Listen("unix", *api)
	if err != nil {
		return err
	}
	s := &server{description: d, version: strings.TrimPrefix(version, "v"), minor: minor, machine: m, quit: make(chan error, 1)}
	go http.Serve(listener, s)
	return <-s.quit
}
