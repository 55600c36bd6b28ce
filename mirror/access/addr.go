package access

import (
	"net/http"
	"net/netip"
	"strings"
)

const (
	// maxForwarded bounds what is read of X-Forwarded-For, in bytes, and
	// maxForwarders how many proxies may stand in a row.
	maxForwarded  = 4 << 10
	maxForwarders = 16
)

// key is what a client is remembered by: whoever has one address of an IPv6 /64
// has all of them.
func key(addr netip.Addr) netip.Addr {
	if !addr.Is6() {
		return addr
	}
	p, err := addr.WithZone("").Prefix(64)
	if err != nil { // there is a /64 in each
		return addr
	}
	return p.Addr()
}

// peer is the other end of a connection, the zero Addr for those without an IP
// address. It takes host:port.
func peer(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

func (r *Rules) trusts(addr netip.Addr) bool {
	addr = addr.WithZone("")
	for _, p := range r.Proxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// who returns the address of the client, and whether a proxy vouches for it. A
// proxy appends whom it got the request from, so the right end of
// X-Forwarded-For is what our own proxies wrote, and the left end is anybody's.
func (r *Rules) who(req *http.Request) (addr netip.Addr, proxied bool) {
	addr = peer(req.RemoteAddr)
	if len(r.Proxies) == 0 || !r.trusts(addr) {
		return addr, false
	}
	lines, left := req.Header["X-Forwarded-For"], maxForwarded
	hops := 0
	for i := len(lines) - 1; i >= 0; i-- {
		line := lines[i]
		for more := line != ""; more; hops++ {
			last := line
			comma := strings.LastIndexByte(line, ',')
			if more = comma >= 0; more {
				line, last = line[:comma], line[comma+1:]
			}
			if left -= len(last) + 1; left < 0 || hops >= maxForwarders {
				return addr, proxied
			}
			next, ok := forwarded(strings.TrimSpace(last))
			if !ok {
				return addr, proxied
			}
			if addr, proxied = next, true; !r.trusts(addr) {
				return addr, true
			}
		}
	}
	return addr, proxied
}

// forwarded reads an entry: an address, with or without a port.
func forwarded(s string) (netip.Addr, bool) {
	if len(s) > 64 {
		return netip.Addr{}, false
	}
	if addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return addr.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// ParseProxies reads addresses and networks: 10.0.0.1, 10.0.0.0/8, fd00::/8.
func ParseProxies(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		s = strings.TrimSpace(s)
		if addr, err := netip.ParseAddr(s); err == nil {
			addr = addr.Unmap().WithZone("")
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, &netParseError{s}
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

type netParseError struct{ text string }

func (e *netParseError) Error() string {
	return "trusted proxy " + e.text + ": want an address or a network such as 10.0.0.0/8"
}
