package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkBuild makes a file system of 20,000 files and 50 MiB.
func BenchmarkBuild(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	var headers []*tar.Header
	for i := range 20000 {
		body := make([]byte, r.IntN(5242))
		for j := range body {
			body[j] = byte(r.Uint32())
		}
		headers = append(headers, &tar.Header{Name: fmt.Sprintf("usr/share/%d/%d/file-%d", i%50, i%700, i), Uname: string(body)})
	}
	img := stack(true, pack(b, headers...))
	dir, err := os.MkdirTemp("/dev/shm", "image-bench-")
	if err != nil {
		dir = b.TempDir()
	}
	defer os.RemoveAll(dir)
	builder, err := New(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		path, err := builder.Ext4(context.Background(), img, nil)
		if err != nil {
			b.Fatal(err)
		}
		os.Remove(path)
	}
}

// BenchmarkGrow makes a disk of 8 GiB of a file system of 50 MiB.
func BenchmarkGrow(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "image-bench-")
	if err != nil {
		dir = b.TempDir()
	}
	defer os.RemoveAll(dir)
	builder, err := New(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	body := string(bytes.Repeat([]byte("0123456789abcdef"), 50<<16))
	path, err := builder.Ext4(context.Background(), stack(true, pack(b, &tar.Header{Name: "f", Uname: body})), nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		dst := filepath.Join(dir, "disk")
		if err := Grow(context.Background(), path, dst, 8<<30); err != nil {
			b.Fatal(err)
		}
		os.Remove(dst)
	}
}
