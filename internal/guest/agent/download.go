package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
)

// copySize is how much file content moves at once. Under emulation the work per
// call dwarfs the work per byte.
const copySize = 512 << 10

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}

func (s *Server) serveFiles(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	acc, err := s.account(r.Header, query.Get("username"))
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, errNoUser) {
			status = http.StatusUnauthorized
		}
		writeError(w, status, err)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		path, err := resolvePath(query.Get("path"), acc, s.Context())
		if err != nil {
			writeError(w, http.StatusBadRequest, err)
			return
		}
		download(w, r, path)
	case http.MethodPost:
		s.upload(w, r, acc, query)
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		writeError(w, http.StatusMethodNotAllowed, fmt.Errorf("%s does not take %s", api.PathFiles, r.Method))
	}
}

// download sends a regular file, or the ranges of it that are asked for.
func download(w http.ResponseWriter, r *http.Request, path string) {
	// Non-blocking, or a named pipe would hold us until it has a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		writeError(w, fileStatus(err), err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		writeError(w, fileStatus(err), err)
		return
	}
	if !st.Mode().IsRegular() {
		writeError(w, http.StatusBadRequest, fmt.Errorf("%s is no regular file but a %s", path, kindName(st.Mode())))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", "inline; filename=\""+headerSafe(filepath.Base(path))+"\"")
	if st.Size() == 0 {
		sendUnsized(w, r, f)
		return
	}
	http.ServeContent(&bulkWriter{w}, r, "", st.ModTime(), f)
}

// sendUnsized sends a file that says it is empty: it is, or it is one of those
// of /proc and /sys that know their content only when read.
func sendUnsized(w http.ResponseWriter, r *http.Request, f *os.File) {
	first := make([]byte, 4096)
	n, err := f.Read(first)
	if err != nil && err != io.EOF {
		w.Header().Del("Content-Disposition")
		writeError(w, fileStatus(err), err)
		return
	}
	if n == 0 {
		w.Header().Set("Content-Length", "0")
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead || n == 0 {
		return
	}
	w.Write(first[:n])
	io.Copy(&bulkWriter{w}, onlyReader{f})
}

// bulkWriter makes io.Copy into a response use large pieces.
type bulkWriter struct{ http.ResponseWriter }

func (b *bulkWriter) ReadFrom(r io.Reader) (int64, error) {
	return copyBulk(b.ResponseWriter, r)
}

// copyBulk is io.Copy with large pieces and none of its shortcuts.
func copyBulk(w io.Writer, r io.Reader) (total int64, err error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := r.Read(*buf)
		if n > 0 {
			m, werr := w.Write((*buf)[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// fileStatus is the HTTP status for an error of the file system.
func fileStatus(err error) int {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return http.StatusNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return http.StatusForbidden
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return http.StatusInsufficientStorage
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ENXIO):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// headerSafe keeps a file name within what a header can carry.
func headerSafe(name string) string {
	out := []byte(name)
	for i, c := range out {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			out[i] = '_'
		}
	}
	return string(out)
}

// kindName names what a file is in words.
func kindName(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "regular file"
}
