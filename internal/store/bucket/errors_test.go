package bucket_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/bucket"
)

// nobody is the address of a port that is taken, so that no other process gets it meanwhile, and at which nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("http://127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

// TestHints has services fail in the ways that users can do something about.
func TestHints(t *testing.T) {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer refusing.Close()
	gone := nobody(t)
	for _, c := range []struct{ name, location, region, words string }{
		{"no region", "s3://spores/x?endpoint=" + refusing.URL, "", "AWS_REGION"},
		{"not allowed", "s3://spores/x?use_path_style=true&endpoint=" + refusing.URL, "eu-central-1", "permissions"},
		{"nobody there", "s3://spores/x?use_path_style=true&endpoint=" + gone, "eu-central-1", "is the service up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("AWS_REGION", c.region)
			t.Setenv("AWS_CONFIG_FILE", "/dev/null")
			b, err := bucket.Open(t.Context(), c.location, bucket.Options{TempDir: t.TempDir(), Attempts: 1, Backoff: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			_, err = b.List(t.Context())
			var hinted interface{ Hint() string }
			if !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), c.words) {
				t.Errorf("no hint of %q: %v", c.words, err)
			}
		})
	}
	for _, location := range []string{"gs://", "http://host/path", "s3://bucket/a/../b", "s3://%zz"} {
		if _, err := bucket.Open(t.Context(), location, bucket.Options{}); !errors.Is(err, bucket.ErrLocation) {
			t.Errorf("%s: %v", location, err)
		}
	}
}
