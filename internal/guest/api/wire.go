package api

import (
	"encoding/binary"
	"errors"
)

// Preface is what an HTTP/2 client sends first. A wake may come between it and
// the first frame of HTTP/2, as frames of its own: right after a thaw under
// emulation every line of code that runs is translated first, and the
// translation of net/http alone takes longer than all else.
//
// A wake's frame has a frame's header (length, type, no flags, stream 0). Its
// payload is an Identity from the host, and a WakeAnswer from the guest, whose
// first frame is a SETTINGS frame without meaning: whoever looks for the
// beginning of a server's bytes finds one.
const (
	Preface     = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	FrameHeader = 9    // bytes
	WakeFrame   = 0xe5 // type
	Settings    = 0x04 // type of the frame that begins a server's bytes
)

// wireVersion is the first byte of every payload of a wake.
const wireVersion = 1

var errWire = errors.New("the wake is malformed")

// AppendFrame appends the frame of a wake.
func AppendFrame(b []byte, kind byte, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, 0, 0, 0, 0, 0)
	return append(b, payload...)
}

// ParseFrameHeader returns the type of a frame and the length of its payload.
func ParseFrameHeader(h [FrameHeader]byte) (kind byte, size int) {
	return h[3], int(h[0])<<16 | int(h[1])<<8 | int(h[2])
}

// AppendWire appends the payload that stands for the identity.
func (id *Identity) AppendWire(b []byte) []byte {
	b = append(b, wireVersion)
	b = appendString(b, id.Generation)
	b = binary.AppendUvarint(b, id.Epoch)
	b = binary.AppendVarint(b, id.Time)
	b = appendString(b, string(id.Entropy))
	b = appendString(b, id.Hostname)
	b = appendString(b, id.MachineID)
	b = appendBool(b, id.Hold)
	b = appendBool(b, id.Net != nil)
	if n := id.Net; n != nil {
		b = appendString(b, n.Interface)
		b = appendString(b, n.MAC)
		b = appendString(b, n.Address)
		b = appendString(b, n.Gateway)
		b = binary.AppendUvarint(b, uint64(len(n.DNS)))
		for _, s := range n.DNS {
			b = appendString(b, s)
		}
	}
	b = appendBool(b, id.Context != nil)
	if c := id.Context; c != nil {
		b = appendString(b, c.User)
		b = appendString(b, c.Workdir)
		b = binary.AppendUvarint(b, uint64(len(c.Env)))
		for k, v := range c.Env {
			b = appendString(b, k)
			b = appendString(b, v)
		}
	}
	return b
}

// ParseIdentity is the reverse of AppendWire. It checks the form only.
func ParseIdentity(b []byte) (Identity, error) {
	d := wireReader{rest: b}
	d.version()
	id := Identity{
		Generation: d.string(),
		Epoch:      d.uint(),
		Time:       d.int(),
		Entropy:    []byte(d.string()),
		Hostname:   d.string(),
		MachineID:  d.string(),
		Hold:       d.bool(),
	}
	if d.bool() {
		id.Net = &Net{Interface: d.string(), MAC: d.string(), Address: d.string(), Gateway: d.string()}
		for range d.count(1) {
			id.Net.DNS = append(id.Net.DNS, d.string())
		}
	}
	if d.bool() {
		id.Context = &Context{User: d.string(), Workdir: d.string()}
		if n := d.count(2); n > 0 {
			id.Context.Env = make(map[string]string, n)
			for range n {
				k := d.string()
				id.Context.Env[k] = d.string()
			}
		}
	}
	return id, d.end()
}

// WakeAnswer is a guest's word on a wake: a report, or an error if Status is not 0.
type WakeAnswer struct {
	Status  int // of HTTP
	Message string
	Report  WakeReport
}

// AppendWire appends the payload that stands for the answer.
func (a *WakeAnswer) AppendWire(b []byte) []byte {
	b = append(b, wireVersion)
	b = binary.AppendUvarint(b, uint64(a.Status))
	b = appendString(b, a.Message)
	r := &a.Report
	b = appendString(b, r.Generation)
	b = binary.AppendUvarint(b, r.Epoch)
	b = appendString(b, r.AgentVersion)
	b = appendString(b, r.Kernel)
	b = binary.AppendVarint(b, r.ClockStep)
	b = binary.AppendVarint(b, r.Time)
	b = binary.AppendVarint(b, int64(r.Entropy))
	b = appendBool(b, r.Thawed)
	return binary.AppendVarint(b, r.Duration)
}

// ParseWakeAnswer is the reverse of AppendWire.
func ParseWakeAnswer(b []byte) (WakeAnswer, error) {
	d := wireReader{rest: b}
	d.version()
	a := WakeAnswer{Status: int(d.uint()), Message: d.string()}
	a.Report = WakeReport{
		Generation:   d.string(),
		Epoch:        d.uint(),
		AgentVersion: d.string(),
		Kernel:       d.string(),
		ClockStep:    d.int(),
		Time:         d.int(),
		Entropy:      int(d.int()),
		Thawed:       d.bool(),
		Duration:     d.int(),
	}
	return a, d.end()
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// wireReader takes a payload apart. After the first fault it gives zeros.
type wireReader struct {
	rest []byte
	bad  bool
}

func (d *wireReader) fail() { d.bad, d.rest = true, nil }

func (d *wireReader) version() {
	if len(d.rest) == 0 || d.rest[0] != wireVersion {
		d.fail()
		return
	}
	d.rest = d.rest[1:]
}

func (d *wireReader) uint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *wireReader) int() int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *wireReader) bool() bool { return d.uint() != 0 }

func (d *wireReader) string() string {
	n := d.uint()
	if n > uint64(len(d.rest)) {
		d.fail()
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

// count reads how many items of at least size bytes follow.
func (d *wireReader) count(size int) int {
	n := d.uint()
	if n > uint64(len(d.rest)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *wireReader) end() error {
	if d.bad || len(d.rest) > 0 {
		return errWire
	}
	return nil
}
