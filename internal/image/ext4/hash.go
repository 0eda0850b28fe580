package ext4

import "math/bits"

const hashHalfMD4 = 1

// hasher computes the hash that directory indexes are sorted by.
type hasher struct{ seed [4]uint32 }

func newHasher(seed [16]byte) hasher {
	h := hasher{seed: [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}}
	if seed != [16]byte{} {
		for i := range h.seed {
			h.seed[i] = le.Uint32(seed[4*i:])
		}
	}
	return h
}

// sum returns a name's hash; its lowest bit is free for the index's own use.
func (h hasher) sum(name string) uint32 {
	buf := h.seed
	for rest := name; len(rest) > 0; rest = rest[min(32, len(rest)):] {
		halfMD4(&buf, hashInput(rest))
	}
	sum := buf[1] &^ 1
	if sum == 0xfffffffe { // stands for the end of the directory
		sum = 0xfffffffc
	}
	return sum
}

// hashInput spreads up to 32 bytes of a name over eight words; the padding
// holds the length of all that is left.
func hashInput(s string) (in [8]uint32) {
	pad := uint32(len(s)) | uint32(len(s))<<8
	pad |= pad << 16
	for i := range in {
		in[i] = pad
	}
	val, word := pad, 0
	n := min(len(s), 32)
	for i := range n {
		val = uint32(s[i]) + val<<8
		if i%4 == 3 {
			in[word] = val
			val = pad
			word++
		}
	}
	if word < len(in) {
		in[word] = val
	}
	return in
}

func halfMD4(buf *[4]uint32, in [8]uint32) {
	f := func(x, y, z uint32) uint32 { return z ^ (x & (y ^ z)) }
	g := func(x, y, z uint32) uint32 { return (x & y) + ((x ^ y) & z) }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	v := *buf
	for _, round := range []struct {
		mix   func(x, y, z uint32) uint32
		add   uint32
		order [8]int
		turn  [4]int
	}{
		{f, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{g, 0x5a827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{h, 0x6ed9eba1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	} {
		for i, word := range round.order {
			// a, d, c, b take turns.
			a, b, c, d := -i&3, (1-i)&3, (2-i)&3, (3-i)&3
			v[a] = bits.RotateLeft32(v[a]+round.mix(v[b], v[c], v[d])+in[word]+round.add, round.turn[i%4])
		}
	}
	for i := range buf {
		buf[i] += v[i]
	}
}
