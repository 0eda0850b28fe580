package guest

import (
	"fmt"
	"io"
	"strings"
)

// cpioWriter writes the "newc" archive that Linux takes as an initramfs (Documentation/driver-api/early-userspace/buffer-format in the kernel's
// sources). Times, owners and inode numbers are fixed, so that the same files always make the same bytes.
type cpioWriter struct {
	w     io.Writer
	n     int64 // bytes written
	inode uint32
	err   error
}

// File types of st_mode.
const (
	cpioFile = 0o100000
	cpioDir  = 0o040000
	cpioChar = 0o020000
)

const (
	cpioMagic   = "070701"
	cpioTrailer = "TRAILER!!!"
	cpioAlign   = 4
	cpioBlock   = 512 // the archive is padded to a whole number of these
)

type cpioEntry struct {
	name         string // relative, without a leading slash
	mode         uint32 // type and permissions
	major, minor uint32 // of devices
	data         []byte
}

func (c *cpioWriter) add(e cpioEntry) error {
	if e.name == "" || strings.HasPrefix(e.name, "/") {
		return fmt.Errorf("archive name %q is not a relative path", e.name)
	}
	c.inode++
	links := uint32(1)
	if e.mode&cpioDir != 0 {
		links = 2
	}
	c.entry(e, c.inode, links)
	return c.err
}

// close writes the end of the archive.
func (c *cpioWriter) close() error {
	c.entry(cpioEntry{name: cpioTrailer}, 0, 1)
	c.pad(cpioBlock)
	return c.err
}

func (c *cpioWriter) entry(e cpioEntry, inode, links uint32) {
	fields := []uint32{
		inode, e.mode, 0, 0, links, 0, // owner and group are root, the time is 0
		uint32(len(e.data)), 0, 0, e.major, e.minor, uint32(len(e.name) + 1), 0,
	}
	var header strings.Builder
	header.WriteString(cpioMagic)
	for _, f := range fields {
		fmt.Fprintf(&header, "%08x", f)
	}
	header.WriteString(e.name)
	header.WriteByte(0)
	c.write([]byte(header.String()))
	c.pad(cpioAlign)
	c.write(e.data)
	c.pad(cpioAlign)
}

func (c *cpioWriter) pad(to int64) {
	if over := c.n % to; over != 0 {
		c.write(make([]byte, to-over))
	}
}

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.err = err
}
