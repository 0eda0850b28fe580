package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestSpans holds the sets that the kernel gets against the lists that the user gave.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Few bits, so that prefixes meet; both ends of all addresses are among them.
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			n := rapid.Uint32Range(0, 63).Draw(t, "address")
			if rapid.Bool().Draw(t, "high") {
				n = ^n
			}
			return netip.PrefixFrom(toAddr(n), rapid.SampledFrom([]int{0, 1, 24, 26, 28, 29, 30, 31, 32}).Draw(t, "bits")).Masked()
		})
		list := rapid.SliceOfN(prefix, 0, 8).Draw(t, "prefixes")
		got := spans(list)
		for i, s := range got {
			if s.first > s.last || i > 0 && uint64(s.first) <= uint64(got[i-1].last)+1 {
				t.Fatalf("spans %v of %v are not apart", got, list)
			}
		}
		for range 64 {
			n := rapid.Uint32Range(0, 127).Draw(t, "probe")
			for _, n := range []uint32{n, ^n, n << 25} {
				want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(toAddr(n)) })
				have := slices.ContainsFunc(got, func(s span) bool { return s.first <= n && n <= s.last })
				if want != have {
					t.Fatalf("%s in %v: %v; in spans %v: %v", toAddr(n), list, want, got, have)
				}
			}
		}
	})
}

func TestParsePolicy(t *testing.T) {
	for _, c := range []struct{ allow, deny, problem string }{
		{"192.0.2.7", "0.0.0.0/0", ""},
		{" 192.0.2.0/24 ", "", ""},
		{"example.com", "", "neither an address"},
		{"", "", "neither an address"},
		{"192.0.2.7/24", "", "did you mean 192.0.2.0/24 or 192.0.2.7"},
		{"", "2001:db8::/32", "no IPv6"},
		{"::ffff:192.0.2.7", "", "no IPv6"},
		{"169.254.169.254", "", "hand out credentials"},
		{"169.254.0.0/16", "", "hand out credentials"},
		{"100.100.100.200/32", "", "hand out credentials"},
		{"0.0.0.0/0", "169.254.169.254", ""},
	} {
		deny := []string{c.deny}
		if c.deny == "" {
			deny = nil
		}
		allow := []string{c.allow}
		if c.allow == "" && deny != nil {
			allow = nil
		}
		_, err := ParsePolicy(allow, deny)
		if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("allow %q, deny %q: %v; want %q", allow, deny, err, c.problem)
		}
	}
	if _, err := ParsePolicy(make([]string, maxEntries+1), nil); err == nil {
		t.Error("a list without end is accepted")
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add("192.0.2.7", "0.0.0.0/0")
	f.Add("10.0.0.0/8,::/0", "1.2.3.4/33")
	f.Fuzz(func(t *testing.T, allow, deny string) {
		p, err := ParsePolicy(strings.Split(allow, ","), strings.Split(deny, ","))
		if err != nil {
			return
		}
		for _, list := range [][]netip.Prefix{p.Allow, p.Deny} {
			for _, prefix := range list {
				if !prefix.Addr().Is4() || prefix.Bits() < 0 {
					t.Errorf("%v can't be a rule", prefix)
				}
			}
			if got := spans(list); len(list) > 0 && len(got) == 0 {
				t.Errorf("%v covers nothing", list)
			}
		}
	})
}

func TestReadServers(t *testing.T) {
	text := "# 1.1.1.1\nnameserver 127.0.0.53\nnameserver 169.254.169.254\nnameserver fe80::1%eth0\nnameserver 10.0.0.2\nsearch x\nnameserver\nnameserver 192.0.2.1 # ours\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n"
	never := append(Blocked(), netip.MustParsePrefix("10.0.0.2/32"))
	if got := readServers(strings.NewReader(text), never); !slices.Equal(got, []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}) {
		t.Errorf("servers: %v", got)
	}
}
