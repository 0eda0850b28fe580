// Command probe is the only program in the images that the tests boot: it looks at the guest from a user process's place.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	commands := map[string]func([]string) error{
		"tick": tick, "random": random, "orphan": orphan, "child": child, "orphans": orphans, "dial": dial, "abort-init": abortInit, "status": status, "eat": eat, "cat": cat,
	}
	f := commands[os.Args[1]]
	if f == nil {
		fmt.Fprintln(os.Stderr, "probe: what?")
		os.Exit(64)
	}
	if err := f(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// tick counts in a file until it is killed. Whoever reads the file, also while this process is frozen, finds a number in it and never half a write.
func tick(args []string) error {
	next := args[0] + ".next"
	for n := 1; ; n++ {
		if err := os.WriteFile(next, fmt.Appendf(nil, "%d %d\n", n, os.Getpid()), 0o644); err != nil {
			return err
		}
		if err := os.Rename(next, args[0]); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// random waits for a file and then prints what the kernel's generator gives.
func random(args []string) error {
	for {
		if _, err := os.Stat(args[0]); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	var b [32]byte
	if _, err := unix.Getrandom(b[:], 0); err != nil {
		return err
	}
	fmt.Printf("%x\n", b)
	return nil
}

// orphan starts children that outlive it.
func orphan([]string) error {
	for range 20 {
		if err := exec.Command("/proc/self/exe", "child").Start(); err != nil {
			return err
		}
	}
	return nil
}

func child([]string) error {
	time.Sleep(50 * time.Millisecond)
	return nil
}

// orphans prints the processes that orphan has started, alive or dead, as long as they are not buried.
func orphans([]string) error {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return err
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(text), " (exe) ") { // as /proc/self/exe has them called
			fmt.Print(string(text))
		}
	}
	return nil
}

// dial prints what a TCP server says.
func dial(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], time.Minute)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.Copy(os.Stdout, c)
	return err
}

// abortInit has process 1 die of its own runtime's hand.
func abortInit([]string) error {
	if err := syscall.Kill(1, syscall.SIGABRT); err != nil {
		return err
	}
	time.Sleep(time.Minute)
	return errors.New("process 1 is still there")
}

// status prints what a process is born with.
func status([]string) error {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s%s", text, cgroup)
	return err
}

// cat prints files.
func cat(args []string) error {
	for _, path := range args {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		os.Stdout.Write(text)
	}
	return nil
}

// eat takes memory until the kernel objects.
func eat([]string) error {
	var all [][]byte
	for {
		b := make([]byte, 8<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
		if len(all) > 1<<10 {
			return errors.New("there is no end to this guest's memory")
		}
	}
}
