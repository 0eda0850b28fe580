package ext4

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ErrAttributes says that an inode's extended attributes can't be stored.
var ErrAttributes = errors.New("extended attributes do not fit the file system")

const attrMagic = 0xea020000

// attr is an extended attribute as the disk has it: the name's first part is a number.
type attr struct {
	index       uint8
	name, value string
}

func (a attr) entryLen() int { return 16 + (len(a.name)+3)&^3 }
func (a attr) valueLen() int { return (len(a.value) + 3) &^ 3 }

// attrSpaces are the parts of names that the disk has numbers for.
var attrSpaces = []struct {
	index  uint8
	prefix string
}{
	{1, "user."},
	{4, "trusted."},
	{6, "security."},
}

// placeAttrs stores attributes behind the fields of the inode, and what does
// not fit there in a block of their own, whose number it returns.
func (w *Writer) placeAttrs(inode []byte, xattrs map[string]string) (block int64, err error) {
	if len(xattrs) == 0 {
		return 0, nil
	}
	var inside, outside []attr
	insideLeft := inodeSize - inlineAttrs - 4 - 4
	outsideLeft := BlockSize - 32 - 4
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		a, err := diskAttr(name, xattrs[name])
		if err != nil {
			return 0, err
		}
		n := a.entryLen() + a.valueLen()
		switch {
		case n <= insideLeft:
			inside = append(inside, a)
			insideLeft -= n
		case n <= outsideLeft:
			outside = append(outside, a)
			outsideLeft -= n
		default:
			return 0, fmt.Errorf("%w: %q", ErrAttributes, name)
		}
	}
	if len(inside) > 0 {
		le.PutUint32(inode[inlineAttrs:], attrMagic)
		putAttrs(inode[inlineAttrs+4:], inode[inlineAttrs+4:], inside)
	}
	if len(outside) == 0 {
		return 0, nil
	}
	spans, err := w.alloc(1)
	if err != nil {
		return 0, err
	}
	p := make([]byte, BlockSize)
	le.PutUint32(p[0:], attrMagic)
	le.PutUint32(p[4:], 1) // inodes that refer to it
	le.PutUint32(p[8:], 1) // blocks
	// The kernel looks attributes of a block up in this order.
	slices.SortFunc(outside, func(a, b attr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	le.PutUint32(p[12:], putAttrs(p[32:], p, outside))
	return spans[0].start, w.writeBlocks(p, spans)
}

// putAttrs writes entries from the front of dst and values from its back.
// Values' offsets count from the start of base, of which dst is the tail.
// It returns the hash over all entries.
func putAttrs(dst, base []byte, attrs []attr) (sum uint32) {
	at, end := 0, len(dst)
	for _, a := range attrs {
		end -= a.valueLen()
		copy(dst[end:], a.value)
		e := dst[at:]
		e[0] = uint8(len(a.name))
		e[1] = a.index
		if len(a.value) > 0 {
			le.PutUint16(e[2:], uint16(end+len(base)-len(dst)))
		}
		le.PutUint32(e[8:], uint32(len(a.value)))
		h := attrHash(a)
		le.PutUint32(e[12:], h)
		copy(e[16:], a.name)
		at += a.entryLen()
		sum = sum<<16 ^ sum>>16 ^ h
	}
	return sum
}

func attrHash(a attr) (h uint32) {
	for i := range len(a.name) {
		h = h<<5 ^ h>>27 ^ uint32(a.name[i])
	}
	value := make([]byte, a.valueLen())
	copy(value, a.value)
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(value)
	}
	return h
}

func diskAttr(name, value string) (attr, error) {
	for _, s := range attrSpaces {
		if rest, ok := strings.CutPrefix(name, s.prefix); ok && rest != "" && len(rest) <= 255 {
			return attr{s.index, rest, value}, nil
		}
	}
	switch name {
	case "system.posix_acl_access", "system.posix_acl_default":
		acl, err := diskACL(value)
		if err != nil {
			return attr{}, err
		}
		index := uint8(2)
		if name == "system.posix_acl_default" {
			index = 3
		}
		return attr{index: index, value: acl}, nil
	}
	return attr{}, fmt.Errorf("%w: the name %q", ErrAttributes, name)
}

// diskACL turns an access control list as system calls have it into ext4's
// shorter form: entries that name nobody carry no id.
func diskACL(s string) (string, error) {
	const userTag, groupTag = 0x02, 0x08
	p := []byte(s)
	if len(p) < 4 || (len(p)-4)%8 != 0 || le.Uint32(p) != 2 {
		return "", fmt.Errorf("%w: not an access control list", ErrAttributes)
	}
	out := binary.LittleEndian.AppendUint32(nil, 1)
	for p = p[4:]; len(p) > 0; p = p[8:] {
		out = append(out, p[:4]...)
		if tag := le.Uint16(p); tag == userTag || tag == groupTag {
			out = append(out, p[4:8]...)
		}
	}
	return string(out), nil
}
