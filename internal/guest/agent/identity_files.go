package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sporevm/spore/internal/guest/api"
	"golang.org/x/sys/unix"
)

// identityDir holds the files that say who this machine is. They are mounted over the image's own, so that an identity never reaches the disk: disks
// are shared by clones, may be read-only, and may have no such files at all.
const identityDir = "/run/spore"

// name puts the machine's names in force.
func (m *Machine) name(id api.Identity) error {
	if id.MachineID != "" {
		if err := m.put("/etc/machine-id", []byte(id.MachineID+"\n")); err != nil {
			return err
		}
	}
	if id.Hostname == "" {
		return nil
	}
	if err := unix.Sethostname([]byte(id.Hostname)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := m.put("/etc/hostname", []byte(id.Hostname+"\n")); err != nil {
		return err
	}
	before := m.hostname
	m.hostname = id.Hostname
	if before == id.Hostname {
		return nil
	}
	known, err := m.read("/etc/hosts")
	if err != nil {
		return err
	}
	return m.put("/etc/hosts", hosts(known, before, id.Hostname))
}

// hosts returns the text of /etc/hosts in which this machine's name is name and no longer before. Lines that others wrote stay.
func hosts(known []byte, before, name string) []byte {
	var out bytes.Buffer
	own := func(n string) string { return "127.0.1.1\t" + n + "\n" }
	local := false
	for line := range bytes.Lines(known) {
		if fields := bytes.Fields(line); len(fields) > 1 && !bytes.HasPrefix(fields[0], []byte("#")) {
			for _, f := range fields[1:] {
				local = local || string(f) == "localhost"
			}
		}
		if s := string(line); before != "" && s == own(before) || s == own(name) {
			continue
		}
		out.Write(line)
		if !bytes.HasSuffix(line, []byte("\n")) {
			out.WriteByte('\n')
		}
	}
	head := ""
	if !local {
		head = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	}
	return append([]byte(head+own(name)), out.Bytes()...)
}

// identityFile is a file in identityDir that is mounted over one of the image's.
type identityFile struct {
	f    *os.File
	size int64 // as we wrote it
}

// put sets the content of path without touching the disk: the file lives in identityDir and is mounted over path. The second time this is a write and
// nothing else.
func (m *Machine) put(path string, content []byte) error {
	known := m.files[path]
	if known == nil {
		f, err := overlayFile(path)
		if err != nil {
			return err
		}
		known = &identityFile{f: f, size: -1}
		m.files[path] = known
	}
	// Written in place: the mount is of this very file.
	if _, err := known.f.WriteAt(content, 0); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if size := int64(len(content)); size != known.size {
		if err := known.f.Truncate(size); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
		known.size = size
	}
	return nil
}

// read returns the content of path as programs of the guest see it; a file that does not exist is empty.
func (m *Machine) read(path string) ([]byte, error) {
	known := m.files[path]
	if known == nil {
		text, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		return text, nil
	}
	known.size = -1 // a user may have changed it
	buf := make([]byte, 4096)
	n, err := known.f.ReadAt(buf, 0)
	if err == nil { // there is more
		buf, err = io.ReadAll(io.NewSectionReader(known.f, 0, 1<<20))
		n = len(buf)
	}
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return buf[:n], nil
}

// overlayFile makes an empty file in identityDir and mounts it over path, which it makes where it is missing.
func overlayFile(path string) (*os.File, error) {
	if err := os.MkdirAll(identityDir, 0o755); err != nil {
		return nil, fmt.Errorf("making a place for the machine's identity: %w", err)
	}
	source := filepath.Join(identityDir, filepath.Base(path))
	f, err := os.OpenFile(source, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", source, err)
	}
	target, err := mountPoint(path)
	if err == nil {
		err = unix.Mount(source, target, "", unix.MS_BIND, "")
	}
	// A read-only image without that file has no place for it, and no program of the image can have looked for it.
	if err != nil && !errors.Is(err, unix.EROFS) {
		f.Close()
		return nil, fmt.Errorf("mounting %s: %w", path, err)
	}
	return f, nil
}

// mountPoint returns the file to mount over for path, after making it where it is missing. A link is followed, also one that leads to a file that does
// not exist yet, as /etc/resolv.conf of images with systemd does.
func mountPoint(path string) (string, error) {
	for range 10 {
		st, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return "", err
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if err != nil {
				return "", err
			}
			return path, f.Close()
		case err != nil:
			return "", err
		case st.Mode()&fs.ModeSymlink == 0:
			return path, nil
		}
		next, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(next) {
			// The directory may be a link itself, so ".." is not a matter of text.
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return "", err
			}
			next = filepath.Join(dir, next)
		}
		path = next
	}
	return "", fmt.Errorf("%s: %w", path, unix.ELOOP)
}
