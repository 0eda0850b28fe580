package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/agent"
	"github.com/sporevm/spore/internal/guest/api"
)

func read(t *testing.T, c *Client, path string) []byte {
	t.Helper()
	r, _, err := c.ReadFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestFileThereAndBack(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	rnd := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{0, 1, 4096, 1<<20 + 17, 30 << 20} {
		data := make([]byte, size)
		rnd.Read(data)
		path := filepath.Join(dir, "a", fmt.Sprint(size), "file")
		// A reader without any shortcut, and of unknown length.
		if err := c.WriteFile(t.Context(), path, iotest.HalfReader(bytes.NewReader(data)), WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != int64(size) || st.Mode() != 0o644 {
			t.Fatalf("%d bytes: %v, %v", size, st, err)
		}
		r, n, err := c.ReadFile(t.Context(), path)
		if err != nil || n != int64(size) {
			t.Fatalf("size %d, want %d, %v", n, size, err)
		}
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if sha256.Sum256(data) != [32]byte(h.Sum(nil)) {
			t.Errorf("%d bytes came back changed", size)
		}
	}
}

func TestWriteReplaces(t *testing.T) {
	c := session(t)
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"a long first text", "short"} {
		if err := c.WriteFile(t.Context(), path, strings.NewReader(text), WriteOptions{Mode: 0o750 | fs.ModeSetuid, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, c, path); string(got) != "short" {
		t.Errorf("%q", got)
	}
	if st, _ := os.Stat(path); st.Mode() != 0o750|fs.ModeSetuid {
		t.Errorf("mode %v", st.Mode())
	}
}

func TestOwnershipOfWhatIsWritten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root to give files away")
	}
	c := session(t)
	dir := t.TempDir()
	if err := c.WriteFile(t.Context(), dir+"/x/y/f", strings.NewReader("x"), WriteOptions{User: "nobody"}); err != nil {
		t.Fatal(err)
	}
	if err := c.MakeDir(t.Context(), dir+"/d/e", "4321:99"); err != nil {
		t.Fatal(err)
	}
	if err := c.Symlink(t.Context(), "f", dir+"/x/l", "nobody"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][2]uint32{
		dir: {0, 0}, dir + "/x": {65534, 65534}, dir + "/x/y": {65534, 65534}, dir + "/x/y/f": {65534, 65534},
		dir + "/x/l": {65534, 65534}, dir + "/d": {4321, 99}, dir + "/d/e": {4321, 99},
	} {
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); [2]uint32{sys.Uid, sys.Gid} != want {
			t.Errorf("%s belongs to %d:%d, want %v", path, sys.Uid, sys.Gid, want)
		}
	}
	var e *Error
	if err := c.WriteFile(t.Context(), dir+"/g", strings.NewReader("x"), WriteOptions{User: "who-is-this"}); !errors.As(err, &e) || e.Status != http.StatusUnauthorized {
		t.Errorf("an unknown user: %v", err)
	}
}

func TestReadFailures(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir + "/none":                    "no such file",
		dir:                              "directory",
		dir + "/fifo":                    "named pipe",
		"/dev/zero":                      "device",
		"a\x00b":                         "zero byte",
		dir + "/fifo/sub":                "not a directory",
		"/" + strings.Repeat("x/", 3000): "longer than",
	} {
		_, _, err := c.ReadFile(t.Context(), path)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want it to say %q", path, err, want)
		}
	}
	if _, _, err := c.ReadFile(t.Context(), dir+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
}

func TestWriteFailures(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	os.WriteFile(dir+"/file", nil, 0o644)
	unix.Mkfifo(dir+"/fifo", 0o600)
	for path, want := range map[string]string{
		dir:               "is a directory",
		dir + "/file/sub": "is no directory",
		dir + "/fifo":     "no such device", // nobody reads it
		"":                "no path",
	} {
		if err := c.WriteFile(t.Context(), path, strings.NewReader("x"), WriteOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want it to say %q", path, err, want)
		}
	}
	// An upload that breaks off leaves no half of a new file.
	broken := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("torn")))
	if err := c.WriteFile(t.Context(), dir+"/half", broken, WriteOptions{}); err == nil {
		t.Error("a torn upload succeeded")
	}
	waitFor(t, "the half file to go", func() bool { _, err := os.Stat(dir + "/half"); return os.IsNotExist(err) })
	if err := c.Health(t.Context()); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestErrorWhileTheBodyIsStuck(t *testing.T) {
	c := session(t)
	r, w := io.Pipe() // nobody ever writes
	defer w.Close()
	done := make(chan error, 1)
	go func() { done <- c.WriteFile(t.Context(), t.TempDir(), r, WriteOptions{}) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a directory was overwritten")
		}
	case <-time.After(patience):
		t.Fatal("the error waits for the body")
	}
}

func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root to mount a small file system")
	}
	c := session(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("SKIP: cannot mount a tmpfs:", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	data := make([]byte, 2<<20)
	for name, size := range map[string]int64{"announced": int64(len(data)), "surprise": 0} {
		err := c.WriteFile(t.Context(), dir+"/f", bytes.NewReader(data), WriteOptions{Size: size})
		if !errors.Is(err, ErrNoSpace) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir + "/f"); !os.IsNotExist(err) {
			t.Errorf("%s: a part is left: %v", name, err)
		}
	}
}

func TestFilesOfProc(t *testing.T) {
	// They say that they are empty.
	if got := read(t, session(t), "/proc/self/limits"); !bytes.Contains(got, []byte("Max open files")) {
		t.Errorf("%q", got)
	}
}

func TestRanges(t *testing.T) {
	c := session(t)
	path := filepath.Join(t.TempDir(), "f")
	os.WriteFile(path, []byte("0123456789"), 0o644)
	for _, tc := range []struct {
		offset, n int64
		want      string
	}{{0, 3, "012"}, {4, 2, "45"}, {8, 100, "89"}} {
		r, err := c.ReadFileAt(t.Context(), path, tc.offset, tc.n)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(r)
		r.Close()
		if string(got) != tc.want {
			t.Errorf("%d bytes at %d: %q", tc.n, tc.offset, got)
		}
	}
	if _, err := c.ReadFileAt(t.Context(), path, 10, 1); err == nil {
		t.Error("a range past the end was read")
	}
}

func TestRelativePaths(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, agent.Options{Context: api.Context{Workdir: dir}})
	c := h.session()
	if err := c.WriteFile(t.Context(), "sub/../f", strings.NewReader("here"), WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dir + "/f"); err != nil || string(got) != "here" {
		t.Errorf("%q, %v", got, err)
	}
	st, err := c.Stat(t.Context(), "~")
	if err != nil || st.Path != "/root" {
		t.Errorf("~ is %+v, %v", st, err)
	}
}

// post sends an upload as SDKs do.
func post(t *testing.T, c *Client, query, contentType string, body io.Reader, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, baseURL+"/files?"+query, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(data)
}

func TestMultipartUpload(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	form := func(names ...string) (string, io.Reader) {
		var buf bytes.Buffer
		w := multipart.NewWriter(&buf)
		w.WriteField("comment", "not a file")
		for _, n := range names {
			part, _ := w.CreateFormFile("file", n)
			io.WriteString(part, "content of "+filepath.Base(n))
		}
		w.Close()
		return w.FormDataContentType(), &buf
	}
	kind, body := form(dir+"/one", dir+"/sub/two")
	status, answer := post(t, c, "", kind, body)
	if status != http.StatusOK || !strings.Contains(answer, `{"path":"`+dir+`/sub/two","name":"two","type":"file"}`) {
		t.Errorf("%d %s", status, answer)
	}
	for _, n := range []string{"one", "sub/two"} {
		if got, err := os.ReadFile(filepath.Join(dir, n)); err != nil || string(got) != "content of "+filepath.Base(n) {
			t.Errorf("%s: %q, %v", n, got, err)
		}
	}
	kind, body = form("whatever")
	if status, answer := post(t, c, "path="+dir+"/three", kind, body); status != http.StatusOK || !strings.Contains(answer, dir+"/three") {
		t.Errorf("%d %s", status, answer)
	}
	for name, names := range map[string][]string{"twice": {dir + "/x", dir + "/x"}, "none": {}} {
		kind, body := form(names...)
		if status, answer := post(t, c, "", kind, body); status != http.StatusBadRequest || !strings.Contains(answer, `"code":400`) {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	if status, _ := post(t, c, "", "multipart/form-data; boundary=x", strings.NewReader("--x\r\ngarbage")); status != http.StatusBadRequest {
		t.Errorf("a torn form: %d", status)
	}
}

func TestUploadExtras(t *testing.T) {
	c := session(t)
	path := filepath.Join(t.TempDir(), "f")
	if status, answer := post(t, c, "path="+path, "application/octet-stream", strings.NewReader("x"), "Content-Encoding", "br"); status != http.StatusUnsupportedMediaType {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := post(t, c, "path="+path+"&mode=99", "application/octet-stream", strings.NewReader("x")); status != http.StatusBadRequest {
		t.Errorf("%d %s", status, answer)
	}
	gz := []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\xcf\x2e\xc8\x2f\x4a\x05\x00\xdb\x64\x23\x6d\x06\x00\x00\x00")
	status, answer := post(t, c, "path="+path, "application/octet-stream", bytes.NewReader(gz), "Content-Encoding", "gzip")
	if status == http.StatusOK {
		t.Errorf("a wrong checksum passed: %s", answer)
	}
}

func TestMetadata(t *testing.T) {
	c := session(t)
	path := filepath.Join(t.TempDir(), "f")
	os.WriteFile(path, nil, 0o644)
	if err := unix.Setxattr(path, "user.spore.probe", []byte("x"), 0); err != nil {
		t.Skip("SKIP: no extended attributes here:", err)
	}
	status, answer := post(t, c, "path="+path, "application/octet-stream", strings.NewReader("x"), "X-Metadata-Kind", "fig")
	if status != http.StatusOK || !strings.Contains(answer, `"metadata":{"kind":"fig"}`) {
		t.Fatalf("%d %s", status, answer)
	}
	st, err := c.Stat(t.Context(), path)
	if err != nil || len(st.Metadata) != 1 || st.Metadata["kind"] != "fig" {
		t.Errorf("%v, %v", st.Metadata, err)
	}
}

func TestFilesystem(t *testing.T) {
	c := session(t)
	ctx := t.Context()
	dir := t.TempDir()
	if err := c.MakeDir(ctx, dir+"/a/b", ""); err != nil {
		t.Fatal(err)
	}
	if err := c.MakeDir(ctx, dir+"/a/b", ""); !errors.Is(err, fs.ErrExist) {
		t.Errorf("making it twice: %v", err)
	}
	os.WriteFile(dir+"/a/b/f", []byte("12345"), 0o640)
	os.Chmod(dir+"/a/b/f", 0o640|fs.ModeSetgid)
	if err := c.Symlink(ctx, "b/f", dir+"/a/link", ""); err != nil {
		t.Fatal(err)
	}
	if err := c.Symlink(ctx, "nowhere", dir+"/a/dangling", ""); err != nil {
		t.Fatal(err)
	}
	st, err := c.Stat(ctx, dir+"/a/b/f")
	if err != nil || st.Name != "f" || st.Size != 5 || st.Mode != 0o640|fs.ModeSetgid || st.Owner != "root" || st.Link != "" || time.Since(st.ModTime) > time.Minute {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err := c.Stat(ctx, dir+"/a/link"); err != nil || !st.Mode.IsRegular() || st.Size != 5 || st.Link != dir+"/a/b/f" {
		t.Errorf("a link: %+v, %v", st, err)
	}
	if st, err := c.Stat(ctx, dir+"/a/dangling"); err != nil || st.Mode&fs.ModeSymlink == 0 || st.Link != "nowhere" {
		t.Errorf("a dangling link: %+v, %v", st, err)
	}
	if _, err := c.Stat(ctx, dir+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := c.Symlink(ctx, "x", dir+"/a/b", ""); err == nil {
		t.Error("a directory was replaced by a link")
	}
	if err := c.Move(ctx, dir+"/a", dir+"/new/place"); err != nil {
		t.Fatal(err)
	}
	if err := c.Move(ctx, dir+"/a", dir+"/else/where"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("moving nothing: %v", err)
	}
	if _, err := os.Stat(dir + "/else"); err == nil {
		t.Error("moving nothing made a directory")
	}
	for range 2 {
		if err := c.Remove(ctx, dir+"/new"); err != nil {
			t.Errorf("removing: %v", err)
		}
	}
	if _, err := os.Stat(dir + "/new"); err == nil {
		t.Error("it is still there")
	}
	if err := c.Remove(ctx, "/../"); err == nil {
		t.Error("the root directory may be removed")
	}
}

func TestListDirectories(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	os.MkdirAll(dir+"/a/b/c", 0o755)
	os.WriteFile(dir+"/a/f", nil, 0o644)
	os.WriteFile(dir+"/bad\xff\xfename", nil, 0o644)
	os.Symlink("..", dir+"/a/up") // must not lead in circles
	list := func(path string, depth int) string {
		all, err := c.List(t.Context(), path, depth)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range all {
			names = append(names, strings.TrimPrefix(e.Path, dir+"/"))
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	if got := list(dir, 0); got != "a bad\uFFFDname" {
		t.Errorf("one level: %q", got)
	}
	if got := list(dir+"/a", 2); got != "a/b a/b/c a/f a/up" {
		t.Errorf("two levels: %q", got)
	}
	if got := list(dir, 99); got != "a a/b a/b/c a/f a/up bad\uFFFDname" {
		t.Errorf("all: %q", got)
	}
	if _, err := c.List(t.Context(), dir+"/a/f", 1); err == nil || !strings.Contains(err.Error(), "no directory") {
		t.Errorf("listing a file: %v", err)
	}
}

func TestLargeListing(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	for i := range 1000 {
		if err := os.WriteFile(fmt.Sprintf("%s/a-file-with-a-longer-name-%05d", dir, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := c.List(t.Context(), dir, 1); err != nil || len(all) != 1000 {
		t.Errorf("%d entries, %v", len(all), err)
	}
}

func TestCancelledTransferLeavesTheSessionWell(t *testing.T) {
	c := session(t)
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, make([]byte, 20<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		r, _, err := c.ReadFile(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(r, make([]byte, 1<<20))
		cancel()
		r.Close()
	}
	if got := read(t, c, path); len(got) != 20<<20 {
		t.Errorf("%d bytes", len(got))
	}
}
