// Server is what the SDK's test runs in a sandbox to be reached from outside: plain answers, a stream of events, and an echo of websocket messages.
package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	next := make(chan struct{})
	http.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello %s from %s\n", r.URL, r.Host) })
	http.HandleFunc("/next", func(w http.ResponseWriter, r *http.Request) { next <- struct{}{} })
	http.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	http.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
		for echo(conn, buf.Reader) == nil {
		}
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}

// echo sends one message back. Messages are short here, and in one piece.
func echo(conn net.Conn, r *bufio.Reader) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	size := int(head[1] & 0x7f)
	if size == 126 {
		var long [2]byte
		if _, err := io.ReadFull(r, long[:]); err != nil {
			return err
		}
		size = int(binary.BigEndian.Uint16(long[:]))
	}
	var mask [4]byte
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, mask[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, payload); err != nil {
		return err
	}
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	out := []byte{head[0], byte(size)}
	if size > 125 {
		out = binary.BigEndian.AppendUint16([]byte{head[0], 126}, uint16(size))
	}
	if _, err := conn.Write(append(out, payload...)); err != nil {
		return err
	}
	if head[0]&0x0f == 8 { // the other side is leaving
		return io.EOF
	}
	return nil
}
