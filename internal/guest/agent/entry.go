package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	fsapi "github.com/sporevm/spore/internal/guest/api/filesystem"
)

// names turns user and group numbers into names, reading the account files once.
type names struct{ users, groups map[uint32]string }

func (a accounts) names() names {
	n := names{map[uint32]string{}, map[uint32]string{}}
	passwd, _ := readLimited(filepath.Join(a.root, "etc/passwd"), maxAccountFile)
	group, _ := readLimited(filepath.Join(a.root, "etc/group"), maxAccountFile)
	for name, acc := range users(passwd) {
		if _, taken := n.users[acc.UID]; !taken {
			n.users[acc.UID] = name
		}
	}
	for name, g := range groups(group) {
		if _, taken := n.groups[g.id]; !taken {
			n.groups[g.id] = name
		}
	}
	return n
}

func (n names) user(id uint32) string { return nameOr(n.users, id) }

func (n names) group(id uint32) string { return nameOr(n.groups, id) }

func nameOr(m map[uint32]string, id uint32) string {
	if name := m[id]; name != "" {
		return name
	}
	if id == 0 {
		return "root"
	}
	return strconv.FormatUint(uint64(id), 10)
}

// statEntry describes what is at path, not following a last symbolic link but
// saying where it leads.
func statEntry(path string, n names) (*fsapi.EntryInfo, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return newEntry(path, st, n), nil
}

func newEntry(path string, st fs.FileInfo, n names) *fsapi.EntryInfo {
	e := &fsapi.EntryInfo{Name: text(filepath.Base(path)), Path: text(path)}
	if st.Mode()&fs.ModeSymlink != 0 {
		target := path
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			target = resolved
		} else if link, err := os.Readlink(path); err == nil {
			target = link
		}
		target = text(target)
		e.SymlinkTarget = &target
		// A link that leads somewhere is described as what it leads to.
		if followed, err := os.Stat(path); err == nil {
			st = followed
		}
	}
	e.Type = entryType(st.Mode())
	e.Size = st.Size()
	e.Mode = permissionBits(st.Mode())
	e.Permissions = st.Mode().String()
	e.ModifiedTime = timestamppb.New(st.ModTime())
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = n.user(sys.Uid), n.group(sys.Gid)
	}
	if st.Mode().IsRegular() {
		e.Metadata = metadataAt(path)
	}
	return e
}

// text makes a file name fit for a message, whose strings are UTF-8. Linux names
// are any bytes.
func text(name string) string { return strings.ToValidUTF8(name, "\uFFFD") }

// entryType is the public API's type of a file. It knows no devices, sockets
// and pipes.
func entryType(m fs.FileMode) fsapi.FileType {
	switch {
	case m.IsRegular():
		return fsapi.FileType_FILE_TYPE_FILE
	case m.IsDir():
		return fsapi.FileType_FILE_TYPE_DIRECTORY
	case m&fs.ModeSymlink != 0:
		return fsapi.FileType_FILE_TYPE_SYMLINK
	}
	return fsapi.FileType_FILE_TYPE_UNSPECIFIED
}

// permissionBits are the twelve bits that chmod sets.
func permissionBits(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	return bits
}

// isMissing tells errors that say that there is nothing at a path.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}
