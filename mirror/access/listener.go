package access

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// complainEvery is how often connections that were refused are logged.
const complainEvery = time.Minute

// Listener accepts for the gate: connections that are too many, of all or of a
// client, are closed at once, before anything such as TLS was spent on them.
// The logger is that of ctx.
func (g *Gate) Listener(ctx context.Context, l net.Listener) net.Listener {
	return &listener{Listener: l, gate: g, log: zerolog.Ctx(ctx)}
}

type listener struct {
	net.Listener
	gate       *Gate
	log        *zerolog.Logger
	complained atomic.Int64 // Unix time in nanoseconds
}

// Accept returns the next connection that may stay.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		leave, why := l.gate.admit(c)
		if leave != nil {
			return wrap(c, leave), nil
		}
		l.gate.refused.Add(1)
		now := time.Now().UnixNano()
		if last := l.complained.Load(); now-last >= int64(complainEvery) && l.complained.CompareAndSwap(last, now) {
			l.log.Warn().Str("client", c.RemoteAddr().String()).Str("why", why).Msg("connection refused; further ones within a minute are not logged")
		}
		c.Close()
	}
}

// admit counts a connection. leave ends that; it is nil if it may not stay.
func (g *Gate) admit(c net.Conn) (leave func(), why string) {
	rules := g.rules.Load()
	if n := g.conns.Add(1); rules.MaxConns > 0 && n > int64(rules.MaxConns) {
		g.conns.Add(-1)
		return nil, "too many in all"
	}
	leave = func() { g.conns.Add(-1) }
	if rules.Conns <= 0 {
		return leave, ""
	}
	addr := peer(c.RemoteAddr().String())
	if rules.trusts(addr) {
		return leave, "" // its requests are counted
	}
	client := g.clients.hold(key(addr), rules)
	if !g.clients.connect(client, rules.Conns) {
		g.clients.release(client)
		leave()
		return nil, "too many of this client"
	}
	return func() {
		g.clients.disconnect(client)
		g.clients.release(client)
		g.conns.Add(-1)
	}, ""
}

// wrap makes Close call leave. A TCP connection stays one as far as sendfile is
// concerned: net/http finds its ReadFrom.
func wrap(c net.Conn, leave func()) net.Conn {
	if tcp, ok := c.(*net.TCPConn); ok {
		limitUnsent(tcp)
		return &tcpConn{TCPConn: tcp, leave: leave}
	}
	return &conn{Conn: c, leave: leave}
}

type tcpConn struct {
	*net.TCPConn
	once  sync.Once
	leave func()
}

func (c *tcpConn) Close() error {
	c.once.Do(c.leave)
	return c.TCPConn.Close()
}

type conn struct {
	net.Conn
	once  sync.Once
	leave func()
}

func (c *conn) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}
