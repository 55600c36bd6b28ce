// Package fastlane answers the plainest of HTTP/1 requests straight from
// memory, ahead of net/http, which then costs more than the answer: each takes
// one read and one write.
//
// It stands between a listener and an http.Server. A connection is the lane's
// until it brings a request that the lane does not know (see Request.parse: the grammar
// is a small part of what is allowed, and whatever is odd is not in it), that
// came in pieces, or that the handler does not want. From then on it is the
// server's, with every byte that was not answered. So nothing is refused here,
// and what is answered is what the server would have answered.
package fastlane

import (
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// bufferSize is what a connection costs while it is idle, and the largest
	// head.
	bufferSize = 2 << 10

	// touch is after how long the deadlines of a connection are set again: not
	// at each request, which would cost as much as the answer.
	touch = 5 * time.Second

	// between is how many bytes net/http wants to see of the next request: who
	// sends less and goes gets no answer.
	between = 4

	// stopTime is what a client has to take an answer when the lane is closed.
	stopTime = time.Second
)

// Handler answers a request, or returns nil if the server shall do it. It is
// told of the connection for its address, and must not use it otherwise.
type Handler func(conn net.Conn, r *Request) *Response

// Config says how connections are treated.
type Config struct {
	Handler Handler
	First   time.Duration // for the first request to come: 10 s
	Idle    time.Duration // without another one for so long, a connection is closed: 2 min, up to 5 s less
	Write   time.Duration // for a client to take an answer: 30 s, up to 5 s more

	// State is told of new connections, and of the end of those that the lane
	// still has then, as http.Server.ConnState is; nil: nobody is. The server
	// will call connections new that are not: see Handed.
	State func(net.Conn, http.ConnState)
}

// Listener is for http.Server.Serve: it accepts the connections that the lane
// gives away. Closing it ends the connections that the lane has.
type Listener struct {
	net.Listener
	cfg   Config
	dates dates
	away  chan accepted
	done  chan struct{}

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // guarded by mu; nil after Close
	served sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

// New takes over a listener. Close the result, not l.
func New(l net.Listener, cfg Config) *Listener {
	if cfg.State == nil {
		cfg.State = func(net.Conn, http.ConnState) {}
	}
	if cfg.First <= 0 {
		cfg.First = 10 * time.Second
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 2 * time.Minute
	}
	if cfg.Write <= 0 {
		cfg.Write = 30 * time.Second
	}
	lane := &Listener{Listener: l, cfg: cfg, away: make(chan accepted), done: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	lane.served.Go(lane.accept)
	return lane
}

// accept runs until the listener is closed. An error is the server's to look
// at; while it pauses for one, so does this.
func (l *Listener) accept() {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			select {
			case l.away <- accepted{err: err}:
				continue
			case <-l.done:
				return
			}
		}
		l.mu.Lock()
		if l.conns == nil {
			l.mu.Unlock()
			conn.Close()
			continue
		}
		l.conns[conn] = struct{}{}
		l.served.Go(func() { l.serve(conn) })
		l.mu.Unlock()
	}
}

// Accept waits for a connection that the lane has no use for.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case a := <-l.away:
		return a.conn, a.err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends the listener, and all connections of the lane when they have
// answered what they are answering.
func (l *Listener) Close() error {
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	if conns == nil {
		return net.ErrClosed
	}
	err := l.Listener.Close()
	close(l.done)
	for conn := range conns {
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // ends at once
		_ = conn.SetWriteDeadline(time.Now().Add(stopTime))
	}
	l.served.Wait()
	return err
}

func (l *Listener) forget(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

// end closes a connection.
func (l *Listener) end(conn net.Conn) {
	conn.Close()
	l.cfg.State(conn, http.StateClosed)
}

func (l *Listener) closed() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// serve answers what it can on a connection.
func (l *Listener) serve(conn net.Conn) {
	defer l.forget(conn)
	l.cfg.State(conn, http.StateNew)
	buf, r := make([]byte, bufferSize), &Request{}
	var touched time.Time // when the deadlines were set for a request that had come
	_ = conn.SetReadDeadline(time.Now().Add(l.cfg.First))
	if l.closed() { // whose deadline this may have undone
		l.end(conn)
		return
	}
	have := 0 // bytes in buf that are not looked at yet
	for {
		n, err := conn.Read(buf[have:])
		if n == 0 && err != nil {
			l.end(conn)
			return
		}
		head := buf[:have+n]
		for have = 0; len(head) > 0; {
			if !touched.IsZero() && len(head) < between {
				have = copy(buf, head)
				break
			}
			size, ok := r.parse(head)
			var resp *Response
			if ok {
				resp = l.cfg.Handler(conn, r)
			}
			if resp == nil {
				l.giveAway(conn, head)
				return
			}
			now := time.Now()
			if now.Sub(touched) > touch {
				touched = now
				_ = conn.SetReadDeadline(now.Add(l.cfg.Idle))
				_ = conn.SetWriteDeadline(now.Add(l.cfg.Write + touch))
			}
			out := buffers.Get().(*[]byte)
			*out = resp.append((*out)[:0], l.dates.at(now), r.Old)
			_, err := conn.Write(*out)
			buffers.Put(out)
			if err != nil || l.closed() { // or the deadlines just set would keep it open
				l.end(conn)
				return
			}
			head = head[size:]
		}
	}
}

// giveAway hands a connection to the server with the bytes that were read.
func (l *Listener) giveAway(conn net.Conn, unread []byte) {
	if err := conn.SetDeadline(time.Time{}); err != nil {
		l.end(conn)
		return
	}
	select {
	case l.away <- accepted{conn: &handed{conn, append([]byte(nil), unread...)}}:
	case <-l.done:
		l.end(conn)
	}
}

// handed is a connection whose first bytes have been read already.
type handed struct {
	net.Conn
	unread []byte
}

func (c *handed) Read(p []byte) (int, error) {
	if len(c.unread) > 0 {
		n := copy(p, c.unread)
		if c.unread = c.unread[n:]; len(c.unread) == 0 {
			c.unread = nil
		}
		return n, nil
	}
	return c.Conn.Read(p)
}

// ReadFrom keeps the way to sendfile open.
func (c *handed) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// CloseWrite lets the server end a connection so that the client gets the last
// answer.
func (c *handed) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// Handed says whether a connection was the lane's before.
func Handed(conn net.Conn) bool {
	_, ok := conn.(*handed)
	return ok
}

// NetConn is what lies below, as tls.Conn has it.
func (c *handed) NetConn() net.Conn { return c.Conn }
