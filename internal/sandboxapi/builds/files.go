package builds

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// Limits of files that are sent along.
const (
	MaxUpload  = 2 << 30 // bytes of an archive
	maxContent = 4 << 30 // bytes of what is in it
	maxEntries = 200_000
	maxTrees   = 64        // that are kept; the oldest that no build needs goes first
	linkTime   = time.Hour // for which a link to send files to is good
)

// files are what clients have sent along, unpacked, each under a name made of its owner and its hash: a client computes the hash itself, so nobody is given
// what another has sent under the same.
type files struct {
	dir    string
	secret [32]byte

	mu    sync.Mutex
	trees map[string]*tree // by name
}

type tree struct {
	used  time.Time
	users int
}

func newFiles(dir string) (*files, error) {
	f := &files{dir: dir, trees: map[string]*tree{}}
	rand.Read(f.secret[:]) // never fails, as documented
	if err := f.close(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making room for files of builds: %w", err)
	}
	return f, nil
}

func (f *files) close() error { return os.RemoveAll(f.dir) }

// name is what a tree is called.
func name(owner, hash string) string {
	sum := sha256.Sum256([]byte(owner + "\x00" + hash))
	return hex.EncodeToString(sum[:])
}

// Present tells whether an owner has sent the files with this hash.
func (b *Builds) Present(owner, hash string) bool {
	b.files.mu.Lock()
	defer b.files.mu.Unlock()
	return b.files.trees[name(owner, hash)] != nil
}

// Link returns the last part of a link that the files with this hash may be sent to, and nothing else.
func (b *Builds) Link(owner, hash string) string {
	what := name(owner, hash) + "." + strconv.FormatInt(time.Now().Add(linkTime).Unix(), 10)
	return what + "." + b.files.sign(what)
}

func (f *files) sign(what string) string {
	mac := hmac.New(sha256.New, f.secret[:])
	mac.Write([]byte(what))
	return hex.EncodeToString(mac.Sum(nil))
}

// Receive unpacks what was sent to a link: a tar archive, perhaps compressed by gzip. Errors are of the kinds NotFound, for a link that is none, and Invalid.
func (b *Builds) Receive(link string, archive io.Reader) (err error) {
	f := b.files
	i := strings.LastIndexByte(link, '.')
	if i < 0 || !hmac.Equal([]byte(link[i+1:]), []byte(f.sign(link[:i]))) {
		return &fleet.Error{Kind: fleet.NotFound, Message: "there is no such link"}
	}
	what, until, _ := strings.Cut(link[:i], ".")
	if seconds, err := strconv.ParseInt(until, 10, 64); err != nil || time.Now().Unix() > seconds {
		return &fleet.Error{Kind: fleet.NotFound, Message: "the link is too old", Hint: "ask for a new one"}
	}
	draft, err := os.MkdirTemp(f.dir, "draft-")
	if err != nil {
		return fmt.Errorf("making room for files of builds: %w", err)
	}
	defer os.RemoveAll(draft)
	if err := unpack(draft, archive); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trees[what] != nil {
		return nil // sent twice
	}
	f.makeRoom()
	if err := os.Rename(draft, filepath.Join(f.dir, what)); err != nil {
		return fmt.Errorf("keeping files of a build: %w", err)
	}
	f.trees[what] = &tree{used: time.Now()}
	return nil
}

// makeRoom deletes the oldest trees that no build needs, until there is room for one more. f.mu is held.
func (f *files) makeRoom() {
	for len(f.trees) >= maxTrees {
		oldest := ""
		for n, t := range f.trees {
			if t.users == 0 && (oldest == "" || t.used.Before(f.trees[oldest].used)) {
				oldest = n
			}
		}
		if oldest == "" {
			return
		}
		delete(f.trees, oldest)
		os.RemoveAll(filepath.Join(f.dir, oldest))
	}
}

// tree returns the folder of an owner's files. It stays until it is released.
func (f *files) tree(owner, hash string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := name(owner, hash)
	t := f.trees[n]
	if t == nil {
		return "", &fleet.Error{Kind: fleet.Invalid, Message: "COPY: its files were not sent", Hint: "send them to the link of GET /templates/{id}/files/{hash}"}
	}
	t.users++
	t.used = time.Now()
	return filepath.Join(f.dir, n), nil
}

func (f *files) release(dir string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.trees[filepath.Base(dir)]; t != nil {
		t.users--
	}
}

// unpack unpacks an archive into dir. Nothing of it reaches beyond: links are made but never followed.
func unpack(dir string, archive io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	in := bufio.NewReader(io.LimitReader(archive, MaxUpload+1))
	content := io.Reader(in)
	if magic, _ := in.Peek(2); string(magic) == "\x1f\x8b" {
		if content, err = gzip.NewReader(in); err != nil {
			return invalid("unpacking the archive: %v", err)
		}
	}
	limited := &io.LimitedReader{R: content, N: maxContent + 1}
	t := tar.NewReader(limited)
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil && n == maxEntries {
			err = fmt.Errorf("more than %d entries", maxEntries)
		}
		if err == nil {
			err = unpackOne(root, h, t)
		}
		if limited.N <= 0 {
			err = fmt.Errorf("more than %d bytes", int64(maxContent))
		}
		if err != nil {
			return invalid("unpacking the archive: %v", err)
		}
	}
}

func unpackOne(root *os.Root, h *tar.Header, content io.Reader) error {
	name := path.Clean(strings.TrimSuffix(h.Name, "/"))
	if !filepath.IsLocal(name) {
		return fmt.Errorf("%.100q leads out of it", h.Name)
	}
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(path.Clean(h.Linkname), name)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Chmod(os.FileMode(h.Mode)&0o777|0o400), f.Close())
	}
	return fmt.Errorf("%.100q is neither a file, a directory nor a link", h.Name)
}

// find returns what a COPY's source means in a tree: one path, or those that a pattern matches. No link is followed on the way, for it may lead anywhere.
func find(tree, source string) ([]string, error) {
	clean := path.Clean(strings.TrimLeft(source, "/"))
	if !filepath.IsLocal(clean) {
		return nil, invalid("COPY: %.100q leads out of the files that were sent", source)
	}
	found := []string{filepath.Join(tree, clean)}
	if strings.ContainsAny(clean, "*?[") {
		var err error
		if found, err = filepath.Glob(filepath.Join(tree, clean)); err != nil {
			return nil, invalid("COPY: %.100q: %v", source, err)
		}
	}
	for _, f := range found {
		if err := plain(tree, f); err != nil {
			return nil, invalid("COPY: %.100q: %v", source, err)
		}
	}
	if len(found) == 0 {
		return nil, invalid("COPY: nothing that was sent is called %.100q", source)
	}
	return found, nil
}

// plain checks that the way from tree to name leads through no link.
func plain(tree, name string) error {
	rel, err := filepath.Rel(tree, name)
	if err != nil || rel == "." {
		return err
	}
	at := tree
	for part := range strings.SplitSeq(rel, string(filepath.Separator)) {
		at = filepath.Join(at, part)
		info, err := os.Lstat(at)
		if err != nil {
			return errors.New("there is no such file among those that were sent")
		}
		if info.Mode()&os.ModeSymlink != 0 {
			return errors.New("it is a link, or behind one")
		}
	}
	return nil
}
