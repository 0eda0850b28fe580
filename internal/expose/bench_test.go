package expose_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

const benchSize = 256 << 20

// benchOverlay returns an overlay all of which has been written.
func benchOverlay(b *testing.B) *expose.Overlay {
	disk := exposetest.Overlay(b, make([]byte, benchSize))
	p := exposetest.Random(1, 1<<20)
	for at := int64(0); at < benchSize; at += int64(len(p)) {
		if _, err := disk.WriteAt(p, at); err != nil {
			b.Fatal(err)
		}
	}
	return disk
}

// BenchmarkNBD keeps depth requests under way on one connection, as a VMM does: what replies have come in are taken together, and as many requests
// sent. It measures server and client together.
func BenchmarkNBD(b *testing.B) {
	for _, c := range []struct {
		name          string
		command       uint16
		length, depth int
	}{
		{"read/4K/qd1", 0, 4 << 10, 1},
		{"read/4K/qd32", 0, 4 << 10, 32},
		{"read/64K/qd16", 0, 64 << 10, 16},
		{"read/1M/qd8", 0, 1 << 20, 8},
		{"write/4K/qd1", 1, 4 << 10, 1},
		{"write/4K/qd32", 1, 4 << 10, 32},
		{"write/1M/qd8", 1, 1 << 20, 8},
		{"zero/64K/qd32", 6, 64 << 10, 32},
	} {
		b.Run(c.name, func(b *testing.B) {
			conn := serve(b, expose.NewNBDServer(benchOverlay(b), expose.NBDOptions{}))
			client := &benchClient{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), command: c.command, length: c.length, data: exposetest.Random(2, c.length)}
			if err := client.shakeHands(); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(c.length))
			b.ReportAllocs()
			b.ResetTimer()
			if err := client.run(b.N, c.depth); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "IOPS")
		})
	}
}

type benchClient struct {
	conn    net.Conn
	in      *bufio.Reader
	command uint16
	length  int
	data    []byte
	heads   []byte
}

func (c *benchClient) shakeHands() error {
	if _, err := c.conn.Write(appendOption([]byte{0, 0, 0, 3}, 1, nil)); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, c.in, 18+10)
	return err
}

func (c *benchClient) run(n, depth int) error {
	if err := c.send(min(n, depth)); err != nil {
		return err
	}
	sent := min(n, depth)
	for got := 0; got < n; {
		batch := 0
		for batch == 0 || c.in.Buffered() >= 16+c.length {
			if err := c.receive(); err != nil {
				return err
			}
			batch++
		}
		got += batch
		if more := min(batch, n-sent); more > 0 {
			if err := c.send(more); err != nil {
				return err
			}
			sent += more
		}
	}
	return nil
}

func (c *benchClient) send(n int) error {
	var pieces net.Buffers
	c.heads = c.heads[:0]
	for range n {
		at := rand.Uint64N(uint64(benchSize-c.length)/4096) * 4096
		c.heads = appendRequest(c.heads, 0, c.command, 7, at, uint32(c.length))
	}
	if c.command != 1 {
		_, err := c.conn.Write(c.heads)
		return err
	}
	for i := range n {
		pieces = append(pieces, c.heads[28*i:28*(i+1)], c.data)
	}
	_, err := pieces.WriteTo(c.conn)
	return err
}

func (c *benchClient) receive() error {
	var head [16]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return err
	}
	if number := binary.BigEndian.Uint32(head[4:]); number != 0 {
		return fmt.Errorf("error %d", number)
	}
	if c.command == 0 {
		_, err := io.ReadFull(c.in, c.data)
		return err
	}
	return nil
}

func BenchmarkOverlay(b *testing.B) {
	p := make([]byte, 4096)
	b.Run("read/written", func(b *testing.B) {
		disk := benchOverlay(b)
		b.SetBytes(4096)
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			if _, err := disk.ReadAt(p, rand.Int64N(benchSize/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read/base", func(b *testing.B) {
		disk := exposetest.Overlay(b, make([]byte, benchSize))
		b.SetBytes(4096)
		b.ReportAllocs()
		for range b.N {
			if _, err := disk.ReadAt(p, rand.Int64N(benchSize/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read/snapshot", func(b *testing.B) { // 64 KiB are read and verified for most 4 KiB
		source := oneLayer{}
		header := layer(b, source, nil, benchSize, func(w *block.Writer) error { return w.Write(0, exposetest.Random(1, benchSize)) })
		reader := block.NewReader("rootfs.ext4", header, source)
		defer reader.Close()
		disk, err := expose.NewOverlay(reader, b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		defer disk.Close()
		b.SetBytes(4096)
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			if _, err := disk.ReadAt(p, rand.Int64N(benchSize/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("write/again", func(b *testing.B) {
		disk := benchOverlay(b)
		b.SetBytes(4096)
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			if _, err := disk.WriteAt(p, rand.Int64N(benchSize/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("dirty", func(b *testing.B) {
		disk := exposetest.Overlay(b, make([]byte, benchSize))
		for at := int64(0); at < benchSize; at += 8192 {
			if _, err := disk.WriteAt(p, at); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			if n := disk.Dirty().Len(); n != benchSize/8192 {
				b.Fatal(n)
			}
		}
	})
}
