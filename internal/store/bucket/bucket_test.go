package bucket_test

import (
	"os"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket"
	"github.com/sporevm/spore/internal/store/bucket/buckettest"
	"github.com/sporevm/spore/internal/store/storetest"
)

// services are the emulators.
var services buckettest.Services

func TestMain(m *testing.M) {
	os.Exit(buckettest.Run(m, "../../..", func(s buckettest.Services) { services = s }))
}

func open(t testing.TB, url string, o bucket.Options) *bucket.Bucket {
	t.Helper()
	o.TempDir = t.TempDir()
	b, err := bucket.Open(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestContract(t *testing.T) {
	for _, service := range []string{"s3", "gs"} {
		t.Run(service, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) (store.Store, func() store.Store) {
				url := services.URL(service, "")
				return open(t, url, bucket.Options{}), func() store.Store { return open(t, url, bucket.Options{}) }
			})
		})
	}
}

func TestLeases(t *testing.T) {
	url := services.URL("s3", "")
	id := uuid.New()
	kept := open(t, url, bucket.Options{Lease: 6 * time.Second})
	storetest.Publish(t, kept, id, nil)
	pin, err := kept.Pin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, url, bucket.Options{})
	for end := time.Now().Add(9 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if used, err := other.InUse(t.Context(), id); err != nil || !used {
			t.Fatalf("a lease was not renewed: in use %t, %v", used, err)
		}
	}
	if err := pin.Close(); err != nil {
		t.Fatal(err)
	}
	// Of a process that died nobody ends the pin: it runs out.
	dead := open(t, url, bucket.Options{Lease: time.Hour})
	pin, err = dead.Pin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Close()
	if used, err := other.InUse(t.Context(), id); err != nil || !used {
		t.Errorf("in use: %t, %v", used, err)
	}
}

func TestURLs(t *testing.T) {
	for _, bad := range []string{"s3://", "http://x/y", "gs:///x", "s3://b/../c", "s3://b/a//c", "s3://b?nonsense=1", "://"} {
		if b, err := bucket.Open(t.Context(), bad, bucket.Options{}); err == nil {
			b.Close()
			t.Errorf("%q opens", bad)
		} else if len(err.Error()) > 300 {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if bucket.IsURL("/a/b") || bucket.IsURL("a:b") || !bucket.IsURL("gs://x") {
		t.Error("URLs and folders are mixed up")
	}
}
