package guest

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/filesystem"
)

// FileInfo describes a file of the guest.
type FileInfo struct {
	Name, Path   string
	Size         int64       // bytes
	Mode         fs.FileMode // type and permissions; of the target for a link that leads somewhere
	Owner, Group string      // names where the guest has them, else numbers
	ModTime      time.Time
	Link         string // where a symbolic link leads; empty for all else
	Metadata     map[string]string
}

// WriteOptions say how a file is written.
type WriteOptions struct {
	User string      // owner, name or number; empty: the sandbox's default user
	Mode fs.FileMode // permissions; 0: as it has, or 0644
	Size int64       // bytes to come, if known, for an early word on a full disk; 0: unknown
}

// ReadFile opens a file of the guest for reading from its start. size is -1 for
// files that do not know theirs, as in /proc. The caller closes r.
func (c *Client) ReadFile(ctx context.Context, path string) (r io.ReadCloser, size int64, err error) {
	res, err := c.openFile(ctx, path, "")
	if err != nil {
		return nil, 0, fmt.Errorf("reading %s in the guest: %w", path, err)
	}
	return res.Body, res.ContentLength, nil
}

// ReadFileAt opens n bytes of a file of the guest, or fewer if it ends before,
// from offset on.
func (c *Client) ReadFileAt(ctx context.Context, path string, offset, n int64) (io.ReadCloser, error) {
	if offset < 0 || n <= 0 {
		return nil, fmt.Errorf("reading %s in the guest: no such range: %d bytes at %d", path, n, offset)
	}
	res, err := c.openFile(ctx, path, fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
	if err != nil {
		return nil, fmt.Errorf("reading %s in the guest: %w", path, err)
	}
	if res.StatusCode != http.StatusPartialContent {
		res.Body.Close()
		return nil, fmt.Errorf("reading %s in the guest: it cannot be read in pieces", path)
	}
	return res.Body, nil
}

func (c *Client) openFile(ctx context.Context, path, byteRange string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, filesURL(path, 0), nil)
	if err != nil {
		return nil, err
	}
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	return c.do(req)
}

// WriteFile writes what r holds to a file of the guest, making it and the
// directories above it if need be, and replacing what it held.
func (c *Client) WriteFile(ctx context.Context, path string, r io.Reader, o WriteOptions) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, filesURL(path, o.Mode), io.NopCloser(onlyReader{r}))
	if err != nil {
		return fmt.Errorf("writing %s in the guest: %w", path, err)
	}
	req.ContentLength = -1
	if o.Size > 0 {
		req.ContentLength = o.Size
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	setUser(req.Header, o.User)
	res, err := c.do(req)
	if err != nil {
		return fmt.Errorf("writing %s in the guest: %w", path, err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, api.MaxJSONBody)); err != nil {
		return fmt.Errorf("writing %s in the guest: %w", path, err)
	}
	return nil
}

func filesURL(path string, mode fs.FileMode) string {
	q := url.Values{"path": {path}}
	if mode != 0 {
		q.Set("mode", strconv.FormatUint(uint64(unixMode(mode)), 8))
	}
	return baseURL + api.PathFiles + "?" + q.Encode()
}

// Stat describes a file of the guest. A symbolic link is described as what it
// leads to, with Link set. What is not there gives fs.ErrNotExist.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	res, err := c.files.Stat(ctx, connect.NewRequest(&filesystem.StatRequest{Path: path}))
	if err != nil {
		return FileInfo{}, fmt.Errorf("looking at %s in the guest: %w", path, c.rpcError(err))
	}
	return fileInfo(res.Msg.GetEntry()), nil
}

// List describes what is in a directory of the guest, depth levels down.
func (c *Client) List(ctx context.Context, path string, depth int) ([]FileInfo, error) {
	res, err := c.files.ListDir(ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: path, Depth: uint32(max(depth, 1))}))
	if err != nil {
		return nil, fmt.Errorf("listing %s in the guest: %w", path, c.rpcError(err))
	}
	all := make([]FileInfo, 0, len(res.Msg.GetEntries()))
	for _, e := range res.Msg.GetEntries() {
		all = append(all, fileInfo(e))
	}
	return all, nil
}

// MakeDir makes a directory in the guest and those above it that are missing,
// owned by user (empty: the default). One that is there gives fs.ErrExist.
func (c *Client) MakeDir(ctx context.Context, path, user string) error {
	req := connect.NewRequest(&filesystem.MakeDirRequest{Path: path})
	setUser(req.Header(), user)
	if _, err := c.files.MakeDir(ctx, req); err != nil {
		return fmt.Errorf("making directory %s in the guest: %w", path, c.rpcError(err))
	}
	return nil
}

// Remove deletes a file or a whole directory of the guest, if it is there.
func (c *Client) Remove(ctx context.Context, path string) error {
	if _, err := c.files.Remove(ctx, connect.NewRequest(&filesystem.RemoveRequest{Path: path})); err != nil {
		return fmt.Errorf("removing %s in the guest: %w", path, c.rpcError(err))
	}
	return nil
}

// Move renames a file or directory of the guest, making the directories above
// the new place that are missing.
func (c *Client) Move(ctx context.Context, from, to string) error {
	if _, err := c.files.Move(ctx, connect.NewRequest(&filesystem.MoveRequest{Source: from, Destination: to})); err != nil {
		return fmt.Errorf("moving %s to %s in the guest: %w", from, to, c.rpcError(err))
	}
	return nil
}

// Symlink makes a symbolic link at path in the guest, replacing a file or link.
func (c *Client) Symlink(ctx context.Context, target, path, user string) error {
	where := api.PathSymlink
	if user != "" {
		where += "?" + url.Values{"username": {user}}.Encode()
	}
	if err := c.call(ctx, http.MethodPost, where, api.Symlink{Path: path, Target: target}, nil); err != nil {
		return fmt.Errorf("linking %s in the guest: %w", path, err)
	}
	return nil
}

func fileInfo(e *filesystem.EntryInfo) FileInfo {
	mode := fileMode(e.GetMode())
	switch e.GetType() {
	case filesystem.FileType_FILE_TYPE_DIRECTORY:
		mode |= fs.ModeDir
	case filesystem.FileType_FILE_TYPE_SYMLINK:
		mode |= fs.ModeSymlink
	case filesystem.FileType_FILE_TYPE_UNSPECIFIED:
		mode |= fs.ModeIrregular
	}
	return FileInfo{
		Name: e.GetName(), Path: e.GetPath(), Size: e.GetSize(), Mode: mode,
		Owner: e.GetOwner(), Group: e.GetGroup(),
		ModTime: e.GetModifiedTime().AsTime(), Link: e.GetSymlinkTarget(), Metadata: e.GetMetadata(),
	}
}

// fileMode turns the twelve bits of chmod into a FileMode.
func fileMode(bits uint32) fs.FileMode {
	m := fs.FileMode(bits & 0o777)
	if bits&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if bits&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if bits&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// unixMode is the reverse of fileMode.
func unixMode(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}
