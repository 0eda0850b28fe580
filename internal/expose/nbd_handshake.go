package expose

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// handshake settles the connection's terms. It returns false if the client said goodbye without wanting the disk.
func (c *nbdConn) handshake() (wanted bool, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(c.server.options.Handshake)); err != nil {
		return false, err
	}
	hello := binary.BigEndian.AppendUint64(nil, nbdMagic)
	hello = binary.BigEndian.AppendUint64(hello, nbdOptionMagic)
	hello = binary.BigEndian.AppendUint16(hello, nbdFixedNewstyle|nbdNoZeroes)
	if _, err := c.conn.Write(hello); err != nil {
		return false, fmt.Errorf("greeting: %w", err)
	}
	var word [4]byte
	if _, err := io.ReadFull(c.in, word[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return false, nil // somebody only looked whether a server is there
		}
		return false, fmt.Errorf("reading the client's flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(word[:])
	if flags&^(nbdFixedNewstyle|nbdNoZeroes) != 0 {
		return false, fmt.Errorf("the client has unknown flags %#x", flags)
	}
	c.fixed, c.noZeroes = flags&nbdFixedNewstyle != 0, flags&nbdNoZeroes != 0

	for range nbdMaxOptions {
		option, data, err := c.readOption()
		if err != nil {
			return false, err
		}
		done, wanted, err := c.option(option, data)
		if err != nil || !done {
			if err != nil {
				return false, fmt.Errorf("answering option %d: %w", option, err)
			}
			continue
		}
		if wanted {
			return true, c.conn.SetDeadline(time.Time{})
		}
		return false, nil
	}
	return false, fmt.Errorf("the client went on after %d options", nbdMaxOptions)
}

func (c *nbdConn) readOption() (uint32, []byte, error) {
	var head [16]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, fmt.Errorf("reading an option: %w", err)
	}
	if magic := binary.BigEndian.Uint64(head[:]); magic != nbdOptionMagic {
		return 0, nil, fmt.Errorf("an option begins with %#x", magic)
	}
	option, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if length > nbdMaxOption {
		return 0, nil, fmt.Errorf("option %d has %d bytes of data, more than %d", option, length, nbdMaxOption)
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(c.in, data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, fmt.Errorf("reading %d bytes of option %d: %w", length, option, err)
	}
	return option, data, nil
}

// option answers one option. done ends the handshake, with the disk if wanted.
func (c *nbdConn) option(option uint32, data []byte) (done, wanted bool, err error) {
	if option == nbdOptExportName {
		return true, true, c.exportName(string(data))
	}
	if !c.fixed {
		return false, false, errors.New("the client can't understand an answer (it lacks the fixed newstyle flag)")
	}
	r := optionReplies{option: option}
	switch option {
	case nbdOptAbort:
		r.add(nbdRepAck, nil)
		done = true
	case nbdOptList:
		c.list(&r, data)
	case nbdOptInfo, nbdOptGo:
		wanted = c.info(&r, data) && option == nbdOptGo
		done = wanted
	case nbdOptStructuredReply:
		if len(data) != 0 {
			r.add(nbdRepErrInvalid, nil)
			break
		}
		c.structured = true
		r.add(nbdRepAck, nil)
	case nbdOptListMeta, nbdOptSetMeta:
		c.metaContexts(&r, data, option == nbdOptSetMeta)
	default:
		r.add(nbdRepErrUnsup, nil)
	}
	if _, err := c.conn.Write(r.bytes); err != nil {
		// A client may close its end without waiting to see its goodbye acknowledged.
		if option == nbdOptAbort {
			err = nil
		}
		return done, false, err
	}
	return done, wanted, nil
}

// optionReplies gathers the answers to one option.
type optionReplies struct {
	option uint32
	bytes  []byte
}

func (r *optionReplies) add(kind uint32, data []byte) {
	r.bytes = binary.BigEndian.AppendUint64(r.bytes, nbdOptionReply)
	r.bytes = binary.BigEndian.AppendUint32(r.bytes, r.option)
	r.bytes = binary.BigEndian.AppendUint32(r.bytes, kind)
	r.bytes = binary.BigEndian.AppendUint32(r.bytes, uint32(len(data)))
	r.bytes = append(r.bytes, data...)
}

// exportName is the oldest way to choose an export: it can't be refused except by hanging up.
func (c *nbdConn) exportName(name string) error {
	if !c.known(name) {
		return fmt.Errorf("there is no export %.100q", name)
	}
	reply := binary.BigEndian.AppendUint64(nil, uint64(c.size))
	reply = binary.BigEndian.AppendUint16(reply, c.flags())
	if !c.noZeroes {
		reply = append(reply, make([]byte, 124)...)
	}
	_, err := c.conn.Write(reply)
	return err
}

func (c *nbdConn) known(name string) bool { return name == "" || name == c.server.options.Name }

// flags says what the export can do, in the terms of this connection.
func (c *nbdConn) flags() uint16 {
	flags := c.server.flags()
	if c.structured {
		flags |= nbdSendDF
	}
	return flags
}

func (c *nbdConn) list(r *optionReplies, data []byte) {
	if len(data) != 0 {
		r.add(nbdRepErrInvalid, nil)
		return
	}
	name := c.server.options.Name
	r.add(nbdRepServer, append(binary.BigEndian.AppendUint32(nil, uint32(len(name))), name...))
	r.add(nbdRepAck, nil)
}

// info describes the export, whatever the client asked to know: QEMU's layers like to learn the block sizes.
func (c *nbdConn) info(r *optionReplies, data []byte) bool {
	p := parser{data}
	name, ok := p.name()
	count, ok2 := p.uint16()
	if !ok || !ok2 || len(p.rest) != 2*int(count) {
		r.add(nbdRepErrInvalid, nil)
		return false
	}
	if !c.known(name) {
		r.add(nbdRepErrUnknown, nil)
		return false
	}
	export := binary.BigEndian.AppendUint16(nil, nbdInfoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(c.size))
	r.add(nbdRepInfo, binary.BigEndian.AppendUint16(export, c.flags()))

	// Any alignment is served; half a sector would only make QEMU's own code take its slow paths.
	smallest := uint32(512)
	if c.size%512 != 0 {
		smallest = 1
	}
	sizes := binary.BigEndian.AppendUint16(nil, nbdInfoBlockSize)
	sizes = binary.BigEndian.AppendUint32(sizes, smallest)
	sizes = binary.BigEndian.AppendUint32(sizes, BlockSize)
	r.add(nbdRepInfo, binary.BigEndian.AppendUint32(sizes, nbdMaxPayload))

	r.add(nbdRepInfo, append(binary.BigEndian.AppendUint16(nil, nbdInfoName), c.server.options.Name...))
	r.add(nbdRepAck, nil)
	return true
}

// metaContexts answers questions for metadata contexts; choose makes the answer hold for the connection.
func (c *nbdConn) metaContexts(r *optionReplies, data []byte, choose bool) {
	if choose {
		c.allocation = false
	}
	p := parser{data}
	name, ok := p.name()
	count, ok2 := p.uint32()
	if !ok || !ok2 || choose && !c.structured {
		r.add(nbdRepErrInvalid, nil)
		return
	}
	// An empty list of questions asks for everything there is, but chooses nothing.
	match := count == 0 && !choose
	for range count {
		query, ok := p.name()
		if !ok {
			r.add(nbdRepErrInvalid, nil)
			return
		}
		match = match || query == nbdAllocation || query == "base:" && !choose
	}
	switch {
	case len(p.rest) != 0:
		r.add(nbdRepErrInvalid, nil)
		return
	case !c.known(name):
		r.add(nbdRepErrUnknown, nil)
		return
	}
	if match {
		c.allocation = c.allocation || choose
		r.add(nbdRepMeta, append(binary.BigEndian.AppendUint32(nil, nbdAllocationID), nbdAllocation...))
	}
	r.add(nbdRepAck, nil)
}

// parser takes an option's data apart.
type parser struct{ rest []byte }

func (p *parser) uint16() (uint16, bool) {
	if len(p.rest) < 2 {
		return 0, false
	}
	v := binary.BigEndian.Uint16(p.rest)
	p.rest = p.rest[2:]
	return v, true
}

func (p *parser) uint32() (uint32, bool) {
	if len(p.rest) < 4 {
		return 0, false
	}
	v := binary.BigEndian.Uint32(p.rest)
	p.rest = p.rest[4:]
	return v, true
}

// name takes a string that follows its length.
func (p *parser) name() (string, bool) {
	n, ok := p.uint32()
	if !ok || uint64(n) > uint64(len(p.rest)) {
		return "", false
	}
	s := string(p.rest[:n])
	p.rest = p.rest[n:]
	return s, true
}
