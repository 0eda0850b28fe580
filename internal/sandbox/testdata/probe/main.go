// Command probe is what the tests' machines run: it tells what a user process sees of being frozen and woken.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	commands := map[string]func() error{"live": live, "lives": lives, "id": id}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: probe live | lives | id")
		os.Exit(64)
	}
	if err := commands[os.Args[1]](); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// sample is one look at what must differ between two wakes.
type sample struct {
	number int
	host   string
	time   int64
	random [16]byte
	torn   bool // the host's name changed during the look
}

func look(number int) (sample, error) {
	s := sample{number: number, host: hostname(), time: time.Now().UnixNano()}
	s.torn = hostname() != s.host
	_, err := unix.Getrandom(s.random[:], 0)
	return s, err
}

func hostname() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return unix.ByteSliceToString(u.Nodename[:])
}

func (s sample) String() string {
	return fmt.Sprintf("%d %s %d %x %v\n", s.number, s.host, s.time, s.random, s.torn)
}

// live counts in memory for ever. It shows the count in the file "count", and appends to "wakes" what it saw last as one host and first as another.
func live() error {
	var last sample
	for n := 1; ; n++ {
		s, err := look(n)
		if err != nil {
			return err
		}
		if n > 1 && (s.torn || s.host != last.host) {
			if err := add("wakes", last.String()+s.String()); err != nil {
				return err
			}
		}
		if n%10 == 1 {
			if err := show("count", strconv.Itoa(n)); err != nil {
				return err
			}
		}
		last = s
		if s.torn {
			last.host = "torn"
		}
		time.Sleep(time.Millisecond)
	}
}

// lives succeeds once live does.
func lives() error {
	_, err := os.Stat("count")
	return err
}

func add(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Close()
}

// show replaces a file in one step.
func show(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// id prints as whom, where and with what environment it runs.
func id() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	fmt.Printf("%d:%d %s %s\n", os.Getuid(), os.Getgid(), dir, os.Getenv("GREETING"))
	return nil
}
