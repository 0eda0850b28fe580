// Command emulators runs an S3 and a Google Cloud Storage server on loopback, in memory, for tests. It prints the two addresses, a line each, and ends when its
// standard input does.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/fsouza/fake-gcs-server/fakestorage"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// Bucket is in both servers from the start.
const bucket = "spores"

func main() {
	log.SetOutput(os.Stderr)
	s3, err := serveS3()
	if err != nil {
		log.Fatalf("starting the S3 server: %v", err)
	}
	gs, err := serveGS()
	if err != nil {
		log.Fatalf("starting the Cloud Storage server: %v", err)
	}
	fmt.Printf("%s\n%s\n", s3, gs)
	io.Copy(io.Discard, os.Stdin)
}

func serveS3() (string, error) {
	backend := s3mem.New()
	if err := backend.CreateBucket(bucket); err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go http.Serve(l, gofakes3.New(backend).Server())
	return "http://" + l.Addr().String(), nil
}

func serveGS() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	address := "http://" + l.Addr().String()
	// The listener is ours: a number that was free a moment ago may be somebody else's by now.
	s, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		NoListener: true, ExternalURL: address, PublicHost: l.Addr().String(), InitialObjects: nil, Writer: io.Discard,
	})
	if err != nil {
		return "", err
	}
	s.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: bucket})
	go http.Serve(l, s.HTTPHandler())
	return address, nil
}
