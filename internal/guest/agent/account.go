package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"connectrpc.com/connect"
)

// Limits of the account files, which come with the image.
const (
	maxAccountFile = 4 << 20
	maxUserSpec    = 256
	maxGroups      = 1024
)

// errNoUser says that a request names a user whom the guest does not know.
var errNoUser = errors.New("no such user")

// account is a user as a process needs it.
type account struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Home   string
	Shell  string
}

// accounts reads the account files below root at every look-up: user processes
// may change them at any time, and they are small.
type accounts struct{ root string }

// lookup finds the account of spec: "name", "number", or either with ":group".
// Empty means root. Numbers and root need no files.
func (a accounts) lookup(spec string) (account, error) {
	passwd, err := readLimited(filepath.Join(a.root, "etc/passwd"), maxAccountFile)
	if err != nil {
		return account{}, err
	}
	group, err := readLimited(filepath.Join(a.root, "etc/group"), maxAccountFile)
	if err != nil {
		return account{}, err
	}
	return findAccount(passwd, group, spec)
}

// readLimited reads a small file. A missing one is empty.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		// Whatever stands in the way, there are no accounts to be had here.
		return nil, nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %s: larger than %d bytes", path, limit)
	}
	return data, nil
}

// findAccount resolves spec against the contents of /etc/passwd and /etc/group.
func findAccount(passwd, group []byte, spec string) (account, error) {
	if len(spec) > maxUserSpec || strings.ContainsAny(spec, "\x00\n/") {
		return account{}, fmt.Errorf("%w: the name is malformed", errNoUser)
	}
	user, groupSpec, hasGroup := strings.Cut(spec, ":")
	if user == "" {
		user = "root"
	}
	uid, numeric := parseID(user)
	acc, found := account{}, false
	for name, entry := range users(passwd) {
		// A name that looks like a number still wins over the number.
		if name == user {
			acc, found = entry, true
			break
		}
		if numeric && entry.UID == uid && !found {
			acc, found = entry, true
		}
	}
	switch {
	case found:
	case numeric:
		// As container engines do: an unknown number is a member of group 0.
		acc = account{Name: user, UID: uid}
	case user == "root":
		acc = account{Name: "root", Home: "/root"}
	default:
		return account{}, fmt.Errorf("%w: %s", errNoUser, user)
	}
	if acc.Home == "" {
		acc.Home = "/"
	}
	if acc.Shell == "" {
		acc.Shell = "/bin/sh"
	}
	if hasGroup && groupSpec != "" {
		gid, err := findGroup(group, groupSpec)
		if err != nil {
			return account{}, err
		}
		acc.GID = gid
		return acc, nil
	}
	acc.Groups = memberships(group, acc)
	return acc, nil
}

// findGroup resolves the group part of a user.
func findGroup(group []byte, spec string) (uint32, error) {
	for name, gid := range groups(group) {
		if name == spec {
			return gid.id, nil
		}
	}
	if gid, ok := parseID(spec); ok {
		return gid, nil
	}
	return 0, fmt.Errorf("%w: there is no group %s", errNoUser, spec)
}

// memberships lists the groups that name the account as a member.
func memberships(group []byte, acc account) []uint32 {
	var ids []uint32
	for _, g := range groups(group) {
		if len(ids) == maxGroups {
			break
		}
		for m := range strings.SplitSeq(g.members, ",") {
			if m == acc.Name {
				ids = append(ids, g.id)
				break
			}
		}
	}
	return ids
}

// users goes through the lines of /etc/passwd that make sense.
func users(passwd []byte) iter.Seq2[string, account] {
	return func(yield func(string, account) bool) {
		for line := range bytes.Lines(passwd) {
			f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
			if len(f) < 7 || f[0] == "" {
				continue
			}
			uid, ok := parseID(f[2])
			gid, okGroup := parseID(f[3])
			if ok && okGroup && !yield(f[0], account{Name: f[0], UID: uid, GID: gid, Home: f[5], Shell: f[6]}) {
				return
			}
		}
	}
}

type groupEntry struct {
	id      uint32
	members string
}

// groups goes through the lines of /etc/group that make sense.
func groups(group []byte) iter.Seq2[string, groupEntry] {
	return func(yield func(string, groupEntry) bool) {
		for line := range bytes.Lines(group) {
			f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
			if len(f) < 4 || f[0] == "" {
				continue
			}
			if id, ok := parseID(f[2]); ok && !yield(f[0], groupEntry{id, f[3]}) {
				return
			}
		}
	}
}

// parseID reads a user or group number. The last one is the kernel's "none".
func parseID(s string) (uint32, bool) {
	if s == "" || s[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

// requestUser is the user that a request wants to act as: the name of its Basic
// credentials, as SDKs send it, or its username parameter. The password, which
// SDKs leave empty, may name a group.
func requestUser(h http.Header, query string) string {
	if query != "" {
		return query
	}
	r := http.Request{Header: h}
	user, group, ok := r.BasicAuth()
	switch {
	case !ok:
		return ""
	case group != "":
		return user + ":" + group
	}
	return user
}

// account finds the account for a request, or the default one.
func (s *Server) account(h http.Header, query string) (account, error) {
	spec := requestUser(h, query)
	if spec == "" {
		spec = s.Context().User
	}
	return s.accounts.lookup(spec)
}

// rpcAccount is account with the error that Connect calls give.
func (s *Server) rpcAccount(h http.Header) (account, error) {
	acc, err := s.account(h, "")
	if err != nil {
		code := connect.CodeInternal
		if errors.Is(err, errNoUser) {
			code = connect.CodeUnauthenticated
		}
		return account{}, connect.NewError(code, err)
	}
	return acc, nil
}
