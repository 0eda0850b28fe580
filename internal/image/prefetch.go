package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// downloads is how many layers come over the network at once: one
	// connection alone seldom fills a line.
	downloads = 3
	// attempts is how often a layer is asked for whose connection breaks.
	attempts = 3
)

// prefetch begins to download layers to files in dir, and returns layers that
// read those files. read is told of bytes as they come, from one goroutine at
// a time; it may be told of negative ones, when a layer is begun again. stop
// ends what is still under way.
func prefetch(ctx context.Context, dir string, layers []layer, read func(n int64)) (local []layer, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	count := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		read(n)
	}
	local = make([]layer, len(layers))
	tasks := make([]func(), len(layers))
	for i, l := range layers {
		path := filepath.Join(dir, fmt.Sprintf("layer-%d", i))
		done := make(chan struct{})
		var err error
		tasks[i] = func() {
			defer close(done)
			err = l.download(ctx, path, count)
		}
		local[i] = l
		local[i].digest = "" // checked on its way to the file
		local[i].open = func(ctx context.Context) (io.ReadCloser, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-done:
			}
			if err != nil {
				return nil, err
			}
			f, err := os.Open(path)
			if err == nil {
				err = os.Remove(path) // what was read is not needed again
			}
			return f, err
		}
	}
	// Layers are used in order, so they are begun in order.
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		var g errgroup.Group
		g.SetLimit(downloads)
		for _, task := range tasks {
			g.Go(func() error { task(); return nil })
		}
		g.Wait()
	}()
	return local, func() {
		cancel()
		<-finished
	}
}

// download brings a layer to a file, and checks it on the way. It begins again
// if the connection breaks, but not if the bytes are wrong.
func (l layer) download(ctx context.Context, path string, read func(n int64)) error {
	for attempt := 1; ; attempt++ {
		n, err := l.downloadOnce(ctx, path, read)
		if err == nil {
			return nil
		}
		_, wrong := errors.AsType[*DigestError](err)
		_, ours := errors.AsType[*os.PathError](err)
		if wrong || ours || ctx.Err() != nil || attempt == attempts || errors.Is(err, ErrNotFound) || errors.Is(err, ErrAuth) {
			return err
		}
		read(-n)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * 300 * time.Millisecond):
		}
	}
}

func (l layer) downloadOnce(ctx context.Context, path string, read func(n int64)) (n int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	r, err := l.open(ctx)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	in := &checked{r: &cancellable{ctx, r}, what: l.name, want: l.digest, size: l.size, progress: func(k int64) {
		n += k
		read(k)
	}}
	_, err = io.Copy(f, in)
	return n, err
}
