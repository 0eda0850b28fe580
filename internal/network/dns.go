package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// maxServers is how many name servers a C library asks.
const maxServers = 3

// NameServers returns those that a slot can use: the host's, but for those that no slot may reach, or else Google's.
func NameServers() ([]string, error) {
	mine, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the host's addresses: %w", err)
	}
	never := Blocked()
	for _, a := range mine {
		if ipNet, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(ipNet.IP); ok {
				addr = addr.Unmap()
				never = append(never, netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
	}
	// Where systemd-resolved serves the host, the first file names only the resolver on the host, and the second where that asks.
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking for name servers: %w", err)
		}
		servers := readServers(io.LimitReader(f, 64<<10), never)
		f.Close()
		if len(servers) > 0 {
			return servers, nil
		}
	}
	return []string{"8.8.8.8", "8.8.4.4"}, nil
}

// readServers returns the IPv4 servers that a resolv.conf names, without those in never and those on the loopback interface.
func readServers(r io.Reader, never []netip.Prefix) []string {
	var out []string
	for lines := bufio.NewScanner(r); lines.Scan() && len(out) < maxServers; {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err != nil || !addr.Is4() || addr.IsLoopback() || addr.IsUnspecified() {
			continue
		}
		if !slices.ContainsFunc(never, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			out = append(out, addr.String())
		}
	}
	return out
}
