package bucket_test

import (
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"gocloud.dev/blob"

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

// leased returns until when the one lease on a snapshot in S3 lasts, as its object says.
func leased(t *testing.T, location string, id uuid.UUID) time.Time {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	prefix := u.Path[1:] + "/.pins/" + id.String() + "/"
	u.Path = ""
	blobs, err := blob.OpenBucket(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer blobs.Close()
	o, err := blobs.List(&blob.ListOptions{Prefix: prefix}).Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := blobs.ReadAll(t.Context(), o.Key)
	if err != nil {
		t.Fatal(err)
	}
	end, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		t.Fatal(err)
	}
	return end
}

func TestLeases(t *testing.T) {
	location := services.URL("s3", "")
	id := uuid.New()
	kept := open(t, location, bucket.Options{Lease: 12 * time.Second})
	storetest.Publish(t, kept, id, nil)
	pin, err := kept.Pin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, location, bucket.Options{})
	end := leased(t, location, id)
	for range 2 { // that it is renewed in time, and again
		next := leased(t, location, id)
		for ; !next.After(end); next = leased(t, location, id) {
			if time.Now().After(end) {
				t.Fatal("a lease was not renewed")
			}
			time.Sleep(100 * time.Millisecond)
		}
		end = next
	}
	if used, err := other.InUse(t.Context(), id); err != nil || !used {
		t.Errorf("with a lease that was renewed: in use %t, %v", used, err)
	}
	if err := pin.Close(); err != nil {
		t.Fatal(err)
	}
	// Of a process that died nobody ends the pin: it runs out.
	dead := open(t, location, bucket.Options{Lease: time.Hour})
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
