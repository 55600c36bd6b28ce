package choice

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
)

const (
	fingerprintLen = 32 // hex digits
	maxAddresses   = 256
)

// Addresses are those of the system's interfaces that are up, each with the
// network it is in: without loopback and link-local ones, unless there are no
// others.
func Addresses() ([]netip.Prefix, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var outside, inside []netip.Prefix
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			p, ok := prefix(a)
			switch {
			case !ok:
			case p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
				inside = append(inside, p)
			default:
				outside = append(outside, p)
			}
		}
	}
	if len(outside) == 0 {
		outside = inside
	}
	return outside[:min(len(outside), maxAddresses)], nil
}

func prefix(a net.Addr) (netip.Prefix, bool) {
	n, ok := a.(*net.IPNet)
	if !ok {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	if bits > addr.BitLen() {
		ones -= bits - addr.BitLen()
	}
	p := netip.PrefixFrom(addr, ones)
	return p, p.IsValid()
}

// Fingerprint names the place that addresses are in: the same for each address
// of the same networks, as leases and IPv6's temporary addresses change.
func Fingerprint(addrs []netip.Prefix) string {
	var networks []string
	for _, a := range addrs {
		networks = append(networks, a.Masked().String())
	}
	slices.Sort(networks)
	h := sha256.New()
	for _, n := range slices.Compact(networks) {
		h.Write([]byte(n + "\n"))
	}
	return hex.EncodeToString(h.Sum(nil)[:fingerprintLen/2])
}
