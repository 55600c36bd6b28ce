package fetch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/patchkeep/patchkeep/repo/mirrors"
)

var errInside = errors.New("the address is one of this machine or of its link, and nobody who may has named the host")

// dialer keeps names that strangers gave from leading back into the machine:
// Options.Inside.
type dialer struct {
	inside    []string // host or host:port, in lower case; nil: no bound
	loopback  bool     // one of them is on this machine, so others may be
	nextProxy func(*http.Request) (*url.URL, error)

	mu      sync.Mutex
	proxies []string // host:port, guarded by mu: the system's settings name them
}

const maxProxies = 16 // remembered; a system has one or two

func newDialer(o *Options) *dialer {
	d := &dialer{nextProxy: o.Proxy}
	if d.nextProxy == nil {
		d.nextProxy = systemProxy()
	}
	for _, host := range o.Inside {
		host = strings.ToLower(host)
		d.inside = append(d.inside, host)
		name := host
		if h, _, err := net.SplitHostPort(host); err == nil {
			name = h
		}
		d.loopback = d.loopback || isLoopback(strings.Trim(name, "[]"))
	}
	return d
}

func (d *dialer) proxy(req *http.Request) (*url.URL, error) {
	u, err := d.nextProxy(req)
	if u == nil || err != nil {
		return u, err
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	addr := net.JoinHostPort(strings.ToLower(u.Hostname()), port)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Contains(d.proxies, addr) {
		d.proxies = append(d.proxies[max(0, len(d.proxies)-maxProxies+1):], addr)
	}
	return u, nil
}

// DialContext connects to host:port.
func (d *dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	if !d.free(strings.ToLower(addr)) {
		dial.ControlContext = d.refuse
	}
	return dial.DialContext(ctx, network, addr)
}

func (d *dialer) free(addr string) bool {
	if d.inside == nil {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.inside, func(in string) bool { return strings.Trim(in, "[]") == host || in == addr }) || slices.Contains(d.proxies, addr)
}

// refuse looks at the address that a name was resolved to.
func (d *dialer) refuse(_ context.Context, _, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", errInside, address)
	}
	ip := a.Addr().Unmap()
	if !mirrors.Reachable(ip) || ip.IsLoopback() && !d.loopback {
		return fmt.Errorf("%w: %s", errInside, ip)
	}
	return nil
}
