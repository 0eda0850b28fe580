package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
	fsapi "github.com/sporevm/spore/internal/guest/api/filesystem"
)

// maxEntries bounds a listing, which is built in memory.
const maxEntries = 100_000

// fileService implements the service filesystem.Filesystem.
type fileService struct{ s *Server }

// resolve finds the account of a request and the path it means.
func (f *fileService) resolve(h http.Header, path string) (string, account, error) {
	acc, err := f.s.rpcAccount(h)
	if err != nil {
		return "", account{}, err
	}
	abs, err := resolvePath(path, acc, f.s.Context())
	if err != nil {
		return "", account{}, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return abs, acc, nil
}

func (f *fileService) Stat(_ context.Context, req *connect.Request[fsapi.StatRequest]) (*connect.Response[fsapi.StatResponse], error) {
	path, _, err := f.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	e, err := statEntry(path, f.s.accounts.names())
	if err != nil {
		return nil, rpcFileError(err)
	}
	return connect.NewResponse(&fsapi.StatResponse{Entry: e}), nil
}

func (f *fileService) MakeDir(_ context.Context, req *connect.Request[fsapi.MakeDirRequest]) (*connect.Response[fsapi.MakeDirResponse], error) {
	path, acc, err := f.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(path); err == nil {
		if st.IsDir() {
			return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("directory %s is already there", path))
		}
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s is already there and no directory", path))
	}
	if err := makeDirs(path, acc); err != nil {
		return nil, rpcFileError(err)
	}
	e, err := statEntry(path, f.s.accounts.names())
	if err != nil {
		return nil, rpcFileError(err)
	}
	return connect.NewResponse(&fsapi.MakeDirResponse{Entry: e}), nil
}

func (f *fileService) Move(_ context.Context, req *connect.Request[fsapi.MoveRequest]) (*connect.Response[fsapi.MoveResponse], error) {
	from, acc, err := f.resolve(req.Header(), req.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	to, err := resolvePath(req.Msg.GetDestination(), acc, f.s.Context())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if _, err := os.Lstat(from); err != nil {
		return nil, rpcFileError(err) // before parents are made for nothing
	}
	if err := makeParents(to, acc); err != nil {
		return nil, rpcFileError(err)
	}
	if err := os.Rename(from, to); err != nil {
		if errors.Is(err, unix.EXDEV) {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s and %s lie on different file systems: copy it and remove the old one", from, to))
		}
		return nil, rpcFileError(err)
	}
	e, err := statEntry(to, f.s.accounts.names())
	if err != nil {
		return nil, rpcFileError(err)
	}
	return connect.NewResponse(&fsapi.MoveResponse{Entry: e}), nil
}

func (f *fileService) Remove(_ context.Context, req *connect.Request[fsapi.RemoveRequest]) (*connect.Response[fsapi.RemoveResponse], error) {
	path, _, err := f.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the root directory cannot be removed"))
	}
	if err := os.RemoveAll(path); err != nil {
		return nil, rpcFileError(err)
	}
	return connect.NewResponse(&fsapi.RemoveResponse{}), nil
}

func (f *fileService) ListDir(ctx context.Context, req *connect.Request[fsapi.ListDirRequest]) (*connect.Response[fsapi.ListDirResponse], error) {
	path, _, err := f.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, rpcFileError(err)
	}
	if !st.IsDir() {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s is no directory", path))
	}
	l := lister{ctx: ctx, names: f.s.accounts.names()}
	if err := l.list(path, max(req.Msg.GetDepth(), 1)); err != nil {
		return nil, rpcFileError(err)
	}
	return connect.NewResponse(&fsapi.ListDirResponse{Entries: l.entries}), nil
}

// lister collects the entries of a tree, a directory before what is in it.
type lister struct {
	ctx     context.Context
	names   names
	entries []*fsapi.EntryInfo
}

func (l *lister) list(dir string, depth uint32) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	children, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, c := range children {
		path := filepath.Join(dir, c.Name())
		st, err := c.Info()
		if isMissing(err) {
			continue // removed since the directory was read
		}
		if err != nil {
			return err
		}
		if len(l.entries) == maxEntries {
			return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%s has more than %d entries: list it piece by piece", dir, maxEntries))
		}
		l.entries = append(l.entries, newEntry(path, st, l.names))
		// Links are not followed: they may lead back up.
		if depth > 1 && st.IsDir() {
			if err := l.list(path, depth-1); err != nil && !isMissing(err) {
				return err
			}
		}
	}
	return nil
}

// rpcFileError gives an error of the file system its Connect code.
func rpcFileError(err error) error {
	if e := (*connect.Error)(nil); errors.As(err, &e) {
		return e
	}
	code := connect.CodeInternal
	switch {
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, fs.ErrNotExist):
		code = connect.CodeNotFound
	case errors.Is(err, fs.ErrExist):
		code = connect.CodeAlreadyExists
	case errors.Is(err, fs.ErrPermission):
		code = connect.CodePermissionDenied
	case fileStatus(err) == http.StatusInsufficientStorage:
		code = connect.CodeResourceExhausted
	case isMissing(err):
		code = connect.CodeNotFound
	default:
		if e := (*httpError)(nil); errors.As(err, &e) || fileStatus(err) == http.StatusBadRequest || errors.Is(err, unix.EINVAL) {
			code = connect.CodeInvalidArgument
		}
	}
	return connect.NewError(code, err)
}

// serveSymlink makes a symbolic link, for hosts that copy whole directories in.
func (s *Server) serveSymlink(w http.ResponseWriter, r *http.Request) {
	var link api.Symlink
	if r.Method != http.MethodPost {
		writeError(w, http.StatusMethodNotAllowed, fmt.Errorf("%s needs POST", api.PathSymlink))
		return
	}
	acc, err := s.account(r.Header, r.URL.Query().Get("username"))
	if err != nil {
		writeError(w, http.StatusUnauthorized, err)
		return
	}
	if err := readJSON(w, r, &link); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	path, err := resolvePath(link.Path, acc, s.Context())
	if err == nil && link.Target == "" {
		err = errors.New("no target given")
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	if err := makeSymlink(path, link.Target, acc); err != nil {
		status := fileStatus(err)
		if e := (*httpError)(nil); errors.As(err, &e) {
			status = e.status
		}
		writeError(w, status, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func makeSymlink(path, target string, acc account) error {
	if err := makeParents(path, acc); err != nil {
		return err
	}
	if st, err := os.Lstat(path); err == nil {
		if st.IsDir() {
			return badRequest("%s is a directory", path)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.Symlink(target, path); err != nil {
		return err
	}
	return os.Lchown(path, int(acc.UID), int(acc.GID))
}
