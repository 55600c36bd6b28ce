package access

import (
	"net"
	"time"
)

// EnterPlain is Enter for a request over conn, without TLS, that has none of the
// headers which Enter looks at. It is false if the request is to be refused, or
// may have more than an answer at once: Enter knows what then. A visit would be
// over at once, so there is none.
func (g *Gate) EnterPlain(conn net.Conn) bool {
	rules := g.rules.Load()
	if rules.closed() || rules.Bytes > 0 {
		return false
	}
	if rules.Requests <= 0 {
		return true
	}
	addr := peer(conn.RemoteAddr().String())
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		addr = tcp.AddrPort().Addr().Unmap()
	}
	c := g.clients.hold(key(addr), rules)
	defer g.clients.release(c)
	return c.request(rules, time.Now()) == 0
}
