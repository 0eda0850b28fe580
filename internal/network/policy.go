package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxEntries bounds each list of a policy: a set of rules that the kernel takes in one message.
const maxEntries = 512

// Policy says which destinations a slot may reach. Allow wins over Deny, as in E2B's lists: an address in Allow may be reached, another one in Deny may not.
// What is in neither list may be reached, unless there is an Allow and no Deny: an allow list alone is the list of all that may be reached, and one beside a
// deny list is the list of exceptions from it. The zero value permits everything.
//
// Above all policies stand the destinations that no slot may reach: see [Blocked].
type Policy struct {
	Allow, Deny []netip.Prefix // IPv4
}

// Blocked are destinations that no policy opens: link-local addresses, among them 169.254.169.254, and where Alibaba's and Azure's machines get their
// credentials. The host itself and other slots are blocked, too.
func Blocked() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("100.100.100.200/32"),
		netip.MustParsePrefix("168.63.129.16/32"),
	}
}

// ParsePolicy reads lists of addresses (192.0.2.7) and networks (192.0.2.0/24).
func ParsePolicy(allow, deny []string) (Policy, error) {
	var p Policy
	var err error
	if p.Allow, err = parsePrefixes(allow); err != nil {
		return Policy{}, fmt.Errorf("allowed destinations: %w", err)
	}
	if p.Deny, err = parsePrefixes(deny); err != nil {
		return Policy{}, fmt.Errorf("denied destinations: %w", err)
	}
	return p, p.Check()
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	if len(list) > maxEntries {
		return nil, fmt.Errorf("%d entries: %d are allowed", len(list), maxEntries)
	}
	var out []netip.Prefix
	for _, text := range list {
		prefix, err := parsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		out = append(out, prefix)
	}
	return out, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if addr, single := netip.ParseAddr(text); single == nil {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	if err != nil {
		return prefix, fmt.Errorf("%q is neither an address like 192.0.2.7 nor a network like 192.0.2.0/24", text)
	}
	return prefix, nil
}

// Check refuses what can't be enforced, naming the entry.
func (p Policy) Check() error {
	for _, list := range [][]netip.Prefix{p.Allow, p.Deny} {
		if len(list) > maxEntries {
			return fmt.Errorf("%d destinations: %d are allowed", len(list), maxEntries)
		}
		for _, prefix := range list {
			switch {
			case !prefix.IsValid():
				return fmt.Errorf("a destination is no valid network")
			case !prefix.Addr().Is4():
				return fmt.Errorf("%s: sandboxes have no IPv6; name IPv4 destinations", prefix)
			case prefix != prefix.Masked():
				return fmt.Errorf("%s is not a network: did you mean %s or %s?", prefix, prefix.Masked(), prefix.Addr())
			}
		}
	}
	for _, prefix := range p.Allow {
		if i := slices.IndexFunc(Blocked(), func(b netip.Prefix) bool { return b.Bits() <= prefix.Bits() && b.Contains(prefix.Addr()) }); i >= 0 {
			return fmt.Errorf("%s can't be allowed: no sandbox may reach %s, where clouds hand out credentials", prefix, Blocked()[i])
		}
	}
	return nil
}

// IsZero reports whether the policy permits all that can be permitted.
func (p Policy) IsZero() bool { return len(p.Allow) == 0 && len(p.Deny) == 0 }

// restrictive reports whether what is in neither list is denied.
func (p Policy) restrictive() bool { return len(p.Allow) > 0 && len(p.Deny) == 0 }

// span is a range of IPv4 addresses, both ends inside.
type span struct{ first, last uint32 }

// spans returns what the prefixes cover, in ascending order and without overlaps or neighbours: the form in which the kernel takes sets.
func spans(prefixes []netip.Prefix) []span {
	all := make([]span, 0, len(prefixes))
	for _, p := range prefixes {
		first := toUint(p.Masked().Addr())
		all = append(all, span{first, first | uint32(uint64(1)<<(32-p.Bits())-1)})
	}
	slices.SortFunc(all, func(a, b span) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	var out []span
	for _, s := range all {
		if n := len(out); n > 0 && uint64(s.first) <= uint64(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}

func toUint(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func toAddr(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
