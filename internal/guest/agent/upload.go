package agent

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
)

// maxParts bounds the files of one multipart upload.
const maxParts = 10000

// httpError is an error with the status to answer it by.
type httpError struct {
	status int
	err    error
}

func (e *httpError) Error() string { return e.err.Error() }
func (e *httpError) Unwrap() error { return e.err }

func badRequest(format string, args ...any) error {
	return &httpError{http.StatusBadRequest, fmt.Errorf(format, args...)}
}

// upload writes one file from a raw body, or the files of a multipart form.
// Files keep their content at hand only as long as a buffer: any size passes.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, acc account, query url.Values) {
	entries, err := s.receive(r, acc, query)
	if err != nil {
		status := fileStatus(err)
		if e := (*httpError)(nil); errors.As(err, &e) {
			status = e.status
		}
		writeError(w, status, err)
		return
	}
	writeJSON(w, http.StatusOK, entries)
}

func (s *Server) receive(r *http.Request, acc account, query url.Values) ([]api.FileEntry, error) {
	mode, err := fileMode(query.Get("mode"))
	if err != nil {
		return nil, err
	}
	meta, err := metadataOf(r.Header)
	if err != nil {
		return nil, err
	}
	to := target{account: acc, mode: mode, metadata: meta, size: -1}
	body := io.Reader(r.Body)
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
		to.size = r.ContentLength
	case "gzip":
		if body, err = gzip.NewReader(r.Body); err != nil {
			return nil, badRequest("unpacking the upload: %w", err)
		}
	default:
		return nil, &httpError{http.StatusUnsupportedMediaType, fmt.Errorf("cannot unpack Content-Encoding %q", enc)}
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && kind == "multipart/form-data" {
		boundary := params["boundary"]
		if boundary == "" {
			return nil, badRequest("the form names no boundary")
		}
		to.size = -1 // the parts do not tell theirs
		return s.receiveForm(multipart.NewReader(body, boundary), to, query.Get("path"))
	}
	path, err := resolvePath(query.Get("path"), acc, s.Context())
	if err != nil {
		return nil, badRequest("%w", err)
	}
	if err := to.write(path, body); err != nil {
		return nil, err
	}
	return []api.FileEntry{to.entry(path)}, nil
}

// receiveForm writes the parts named "file". The file name of a part is its
// path, unless the request names one for its only part.
func (s *Server) receiveForm(form *multipart.Reader, to target, only string) ([]api.FileEntry, error) {
	entries := []api.FileEntry{}
	seen := map[string]bool{}
	for {
		part, err := form.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, badRequest("reading the form: %w", err)
		}
		if part.FormName() != "file" {
			continue
		}
		if len(entries) == maxParts {
			return nil, badRequest("more than %d files in one upload", maxParts)
		}
		name := only
		if name == "" {
			// Part.FileName drops all but the last element.
			if _, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition")); err == nil {
				name = params["filename"]
			}
		}
		path, err := resolvePath(name, to.account, s.Context())
		if err != nil {
			return nil, badRequest("%w", err)
		}
		if seen[path] {
			return nil, badRequest("%s comes twice in one upload", path)
		}
		seen[path] = true
		if err := to.write(path, part); err != nil {
			return nil, err
		}
		entries = append(entries, to.entry(path))
	}
	if len(entries) == 0 {
		return nil, badRequest("the form holds no part named \"file\"")
	}
	return entries, nil
}

func (t target) entry(path string) api.FileEntry {
	return api.FileEntry{Path: path, Name: filepath.Base(path), Type: "file", Metadata: t.metadata}
}

// fileMode reads the mode parameter, spore's own: octal permission bits. -1: none.
func fileMode(s string) (int, error) {
	if s == "" {
		return -1, nil
	}
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || m > 0o7777 {
		return -1, badRequest("mode %q is not an octal number up to 7777", s)
	}
	return int(m), nil
}

// target is how uploaded files are to be written.
type target struct {
	account  account
	mode     int   // permission bits; -1: those it has, or 0644
	size     int64 // of the content; -1: unknown
	metadata map[string]string
}

// write replaces the content of the file at path, and gives it to the account.
// If that fails, a file that was not there before is removed again.
func (t target) write(path string, content io.Reader) (err error) {
	if err := makeParents(path, t.account); err != nil {
		return err
	}
	_, lstatErr := os.Lstat(path)
	// Not blocking on a named pipe; not following what is no file.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil && os.IsNotExist(lstatErr) {
			os.Remove(path)
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return badRequest("%s is no regular file but a %s", path, kindName(st.Mode()))
	}
	if err := t.checkSpace(f, path); err != nil {
		return err
	}
	if err := f.Chown(int(t.account.UID), int(t.account.GID)); err != nil {
		return err
	}
	// Twice: before the content, so that nobody can read what is not for them,
	// and after it, because writing clears the set-user-ID bit.
	if err := t.chmod(f); err != nil {
		return err
	}
	if err := setMetadata(f, t.metadata); err != nil {
		return err
	}
	n, err := copyBulk(f, content)
	if err != nil {
		if fileStatus(err) == http.StatusInternalServerError {
			return badRequest("receiving %s: broke off after %d bytes: %w", path, n, err)
		}
		return err
	}
	return t.chmod(f)
}

func (t target) chmod(f *os.File) error {
	if t.mode < 0 {
		return nil
	}
	if err := unix.Fchmod(int(f.Fd()), uint32(t.mode)); err != nil {
		return fmt.Errorf("setting the mode of %s: %w", f.Name(), err)
	}
	return nil
}

// checkSpace refuses at once what cannot fit, before it fills the disk.
func (t target) checkSpace(f *os.File, path string) error {
	if t.size <= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil // the write itself will tell
	}
	if free := int64(st.Bavail) * st.Bsize; t.size > free {
		return &httpError{http.StatusInsufficientStorage, fmt.Errorf("%s needs %d bytes, %d are free", path, t.size, free)}
	}
	return nil
}

// makeParents makes the directories above path that are missing, for the account.
func makeParents(path string, acc account) error {
	return makeDirs(filepath.Dir(path), acc)
}

// makeDirs makes dir and the directories above it that are missing. Only those
// it makes change hands.
func makeDirs(dir string, acc account) error {
	st, err := os.Stat(dir)
	if err == nil {
		if !st.IsDir() {
			return badRequest("%s is no directory", dir)
		}
		return nil
	}
	if !os.IsNotExist(err) {
		return err
	}
	if err := makeDirs(filepath.Dir(dir), acc); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if os.IsExist(err) {
			return nil // someone else was faster
		}
		return err
	}
	return os.Lchown(dir, int(acc.UID), int(acc.GID))
}
