package access_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/patchkeep/patchkeep/mirror/access"
)

// from is a connection of which only the other end matters.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// TestEnterPlain: it lets in whom Enter would, counts as Enter does, and knows
// when it does not know.
func TestEnterPlain(t *testing.T) {
	a := from{addr: &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 1}}
	b := from{addr: &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 1}}
	sameNet := from{addr: &net.TCPAddr{IP: net.ParseIP("2001:db8::2"), Port: 1}}
	g := access.New(access.Rules{}, nil)
	if !g.EnterPlain(a) || g.Stats().Clients != 0 {
		t.Error("without rules")
	}
	for name, r := range map[string]access.Rules{
		"certificates": {Certs: true},
		"tokens":       {Tokens: &access.Tokens{}},
		"bytes":        {Bytes: 1},
	} {
		g.Set(r)
		if g.EnterPlain(a) {
			t.Errorf("%s: let in", name)
		}
	}
	g.Set(access.Rules{Requests: 1, Burst: 2, Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	for i, c := range []struct {
		conn net.Conn
		want bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {sameNet, true}, {b, false}, {a, false}} {
		if got := g.EnterPlain(c.conn); got != c.want {
			t.Errorf("request %d: %v", i, got)
		}
	}
}
