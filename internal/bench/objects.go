package bench

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// objects is an object storage service in memory, as much of S3 as a store needs: a source from afar that can be as far away as is asked for, and counts
// what it sends. Clients are trusted: it is there for measurements, on loopback.
type objects struct {
	delay atomic.Int64 // nanoseconds, before the answer to each request
	sent  atomic.Int64 // bytes of answers

	mu      sync.Mutex
	all     map[string]storedObject
	uploads map[string]upload // under way
}

// upload is an object that comes in parts.
type upload struct {
	header http.Header
	parts  map[int][]byte
}

type storedObject struct {
	data     []byte
	etag     string
	modified time.Time
	metadata http.Header // x-amz-meta-…
}

func newObjects() *objects {
	return &objects{all: map[string]storedObject{}, uploads: map[string]upload{}}
}

// ServeHTTP implements http.Handler. Paths are /bucket/key.
func (o *objects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	time.Sleep(time.Duration(o.delay.Load()))
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	counted := &countedResponse{ResponseWriter: w, sent: &o.sent}
	query := r.URL.Query()
	switch {
	case r.Method == http.MethodGet && key == "":
		o.list(counted, query.Get("prefix"))
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		o.get(counted, r, key)
	case r.Method == http.MethodPut:
		o.put(counted, r, key, query.Get("uploadId"), query.Get("partNumber"))
	case r.Method == http.MethodPost && query.Has("uploads"):
		id := uuid.NewString()
		o.mu.Lock()
		o.uploads[id] = upload{r.Header.Clone(), map[int][]byte{}}
		o.mu.Unlock()
		fmt.Fprintf(counted, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case r.Method == http.MethodPost && query.Has("uploadId"):
		o.complete(counted, key, query.Get("uploadId"))
	case r.Method == http.MethodDelete:
		o.mu.Lock()
		delete(o.all, key)
		delete(o.uploads, query.Get("uploadId"))
		o.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "not known here", http.StatusNotImplemented)
	}
}

// countedResponse counts the bytes of answers.
type countedResponse struct {
	http.ResponseWriter
	sent *atomic.Int64
}

// Write implements io.Writer.
func (c *countedResponse) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

func (o *objects) list(w io.Writer, prefix string) {
	type entry struct {
		Key          string
		Size         int
		ETag         string
		LastModified string
	}
	var answer struct {
		XMLName  xml.Name `xml:"ListBucketResult"`
		KeyCount int
		Contents []entry
	}
	o.mu.Lock()
	for key, object := range o.all {
		if strings.HasPrefix(key, prefix) {
			answer.Contents = append(answer.Contents, entry{key, len(object.data), object.etag, object.modified.UTC().Format(time.RFC3339)})
		}
	}
	o.mu.Unlock()
	slices.SortFunc(answer.Contents, func(a, b entry) int { return strings.Compare(a.Key, b.Key) })
	answer.KeyCount = len(answer.Contents)
	_ = xml.NewEncoder(w).Encode(answer)
}

func (o *objects) get(w http.ResponseWriter, r *http.Request, key string) {
	o.mu.Lock()
	object, ok := o.all[key]
	o.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		if r.Method == http.MethodGet {
			fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
		}
		return
	}
	for name, values := range object.metadata {
		w.Header()[name] = values
	}
	w.Header().Set("ETag", object.etag)
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", object.modified, bytes.NewReader(object.data))
}

func (o *objects) put(w http.ResponseWriter, r *http.Request, key, id, part string) {
	data, err := body(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	object := newStored(data, r.Header)
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, exists := o.all[key]; exists && r.Header.Get("If-None-Match") == "*" {
		w.WriteHeader(http.StatusPreconditionFailed)
		fmt.Fprint(w, "<Error><Code>PreconditionFailed</Code></Error>")
		return
	}
	w.Header().Set("ETag", object.etag)
	if id == "" {
		o.all[key] = object
		return
	}
	number, err := strconv.Atoi(part)
	if u, ok := o.uploads[id]; ok && err == nil {
		u.parts[number] = data
		return
	}
	http.Error(w, "no such upload", http.StatusNotFound)
}

func newStored(data []byte, header http.Header) storedObject {
	sum := md5.Sum(data)
	object := storedObject{data: data, etag: `"` + hex.EncodeToString(sum[:]) + `"`, modified: time.Now(), metadata: http.Header{}}
	for name, values := range header {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			object.metadata[name] = values
		}
	}
	return object
}

// complete puts an upload's parts together.
func (o *objects) complete(w io.Writer, key, id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	u := o.uploads[id]
	numbers := make([]int, 0, len(u.parts))
	for n := range u.parts {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	var data []byte
	for _, n := range numbers {
		data = append(data, u.parts[n]...)
	}
	delete(o.uploads, id)
	object := newStored(data, u.header)
	o.all[key] = object
	fmt.Fprintf(w, "<CompleteMultipartUploadResult><Key>%s</Key><ETag>%s</ETag></CompleteMultipartUploadResult>", key, object.etag)
}

// body reads what is put, which may come in the chunks of AWS's own encoding: lines "<length in hex>;…", each with so many bytes behind it, until one of
// length 0.
func body(r *http.Request) ([]byte, error) {
	if !strings.Contains(r.Header.Get("Content-Encoding"), "aws-chunked") {
		return io.ReadAll(r.Body)
	}
	in, out := bufio.NewReader(r.Body), new(bytes.Buffer)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		length, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		n, err := strconv.ParseInt(length, 16, 64)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			_, err := io.Copy(io.Discard, in) // trailers
			return out.Bytes(), err
		}
		if _, err := io.CopyN(out, in, n); err != nil {
			return nil, err
		}
		if _, err := in.Discard(2); err != nil {
			return nil, err
		}
	}
}
