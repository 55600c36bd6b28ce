package fastlane_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/patchkeep/patchkeep/mirror/fastlane"
)

const tag = `"tag"`

var (
	small  = []byte("0123456789")
	large  = bytes.Repeat([]byte("x"), fastlane.MaxBody+1)
	bodies = map[string][]byte{"/a": small, "/a.b/c-d_~": nil, "/large": large}
)

// plain is what the server does, with or without a lane before it.
func plain(w http.ResponseWriter, r *http.Request) {
	body, ok := bodies[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Etag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "text/plain")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Asked", strings.Join(r.Header["Accept-Encoding"], ",")+r.Host)
	w.Write(body)
}

// lane is the same for the lane.
func lane(_ net.Conn, r *fastlane.Request) *fastlane.Response {
	body, ok := bodies[string(r.Path)]
	if !ok {
		return nil
	}
	if string(r.IfNoneMatch) == tag {
		return fastlane.NewResponse(http.StatusNotModified, http.Header{"Etag": {tag}}, nil)
	}
	return fastlane.NewResponse(http.StatusOK, http.Header{
		"Etag": {tag}, "Content-Type": {"text/plain"}, "Content-Length": {strconv.Itoa(len(body))},
		"X-Asked": {string(r.AcceptEncoding) + string(r.Host)},
	}, body)
}

// server is net/http with or without a lane, and counts what came to it.
type server struct {
	addr string
	http *http.Server
	seen atomic.Int64
	done sync.WaitGroup
}

func start(t testing.TB, cfg *fastlane.Config) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().String()}
	if cfg != nil {
		l = fastlane.New(l, *cfg)
	}
	s.http = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.seen.Add(1)
		plain(w, r)
	}), MaxHeaderBytes: 16 << 10}
	s.done.Go(func() { s.http.Serve(l) })
	t.Cleanup(func() { s.http.Close(); s.done.Wait() })
	return s
}

var date = regexp.MustCompile(`\r\nDate: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n`)

// answers sends requests in pieces, ends, and returns all that comes back but
// the Date.
func (s *server) answers(t testing.TB, pieces ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	for _, p := range pieces {
		if _, err := io.WriteString(conn, p); err != nil {
			break // it has seen enough
		}
	}
	conn.(*net.TCPConn).CloseWrite()
	out, _ := io.ReadAll(conn) // a reset after the answer is as good as an end
	return date.ReplaceAllString(string(out), "\r\nDate\r\n")
}

// odd are requests that a lane might be fooled by.
var odd = []string{
	"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /a.b/c-d_~ HTTP/1.1\r\nHost: x\r\nIf-None-Match: " + tag + "\r\n\r\nGET /a HTTP/1.1\r\nhost: y:8\r\naccept-encoding: gzip, br\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nUser-Agent: curl/8\r\nAccept: */*\r\nPragma: no-cache\r\nCache-Control: no-cache\r\nAccept-Language: de\r\n\r\n",
	"GET /large HTTP/1.1\r\nHost: x\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: x\r\nUser-Agent: ApacheBench/2.3\r\nAccept: */*\r\n\r\nGET /a.b/c-d_~ HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nIf-None-Match: " + tag + "\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.0\r\nHost: x\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /a HTTP/1.0\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.0\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 33\r\n\r\nGET /a HTTP/1.1\r\nHost: smuggled\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length : 33\r\n\r\nGET /a HTTP/1.1\r\nHost: smuggled\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nAccept: a\r\n Content-Length: 33\r\n\r\nGET /a HTTP/1.1\r\nHost: smuggled\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nAccept: a\nContent-Length: 33\r\n\r\nGET /a HTTP/1.1\r\nHost: smuggled\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nAccept: a\rContent-Length: 33\r\n\r\nGET /a HTTP/1.1\r\nHost: smuggled\r\n\r\n",
	"GET /a HTTP/1.1\nHost: x\n\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
	"GET /a HTTP/1.1\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost:\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x y\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: a/b\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost:   x  \r\nIf-None-Match:  " + tag + " \r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nIf-None-Match: \"o\"\r\nIf-None-Match: " + tag + "\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nUser-Agent: \x00\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nUser-Agent: ü\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nAccept\r\n\r\n",
	"GET /%61 HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a?x HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a#x HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET  /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a  HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.1 \r\nHost: x\r\n\r\n",
	"GET /a HTTP/2.0\r\nHost: x\r\n\r\n",
	"get /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET http://x/a HTTP/1.1\r\nHost: y\r\n\r\n",
	"GET //a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /../a HTTP/1.1\r\nHost: x\r\n\r\n",
	"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nUser-Agent: " + strings.Repeat("x", 3000) + "\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\nUser-Agent: " + strings.Repeat("x", 30_000) + "\r\n\r\n",
	"GET /a HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 100) + "\r\n",
	"GET /a HTTP/1.1\r\nHo",
	"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET",
	"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET ",
	"GET",
	"", "\x16\x03\x01\x02\x00", "\r\n\r\n\r\n\r\n",
}

// FuzzSameAsNetHTTP: with a lane or without, whatever is sent in whatever
// pieces, the same comes back.
func FuzzSameAsNetHTTP(f *testing.F) {
	fast, slow := start(f, &fastlane.Config{Handler: lane}), start(f, nil)
	for i, s := range odd {
		f.Add([]byte(s), i*7)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		cut = min(max(cut, 0), len(data))
		a, b := string(data[:cut]), string(data[cut:])
		if got, want := fast.answers(t, a, b), slow.answers(t, a, b); got != want {
			t.Errorf("%q and %q:\nwith the lane %.300q\nwithout       %.300q", a, b, got, want)
		}
		if got, want := fast.answers(t, string(data)), slow.answers(t, string(data)); got != want {
			t.Errorf("%q:\nwith the lane %.300q\nwithout       %.300q", data, got, want)
		}
	})
}

// TestWhoAnswers: what is plain never reaches the server, and from the first
// request on that is not, the server has the connection.
func TestWhoAnswers(t *testing.T) {
	const (
		a     = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
		plain = "GET /a HTTP/1.1\r\nhOST:x\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: zstd, gzip\r\nIf-None-Match: \"x\"\r\n\r\n"
		other = "GET /a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n"
	)
	s := start(t, &fastlane.Config{Handler: lane})
	for _, c := range []struct {
		send            string
		answers, server int
	}{
		{a, 1, 0},
		{plain, 1, 0},
		{strings.Repeat(a, 20), 20, 0},
		{"GET /a HTTP/1.0\r\nHost: x\r\nConnection: Keep-Alive\r\n\r\n" + a, 1, 0}, // and one of HTTP/1.0
		{other, 1, 1},
		{a + a + other + a + a, 5, 3},
		{a + "GET /large HTTP/1.1\r\nHost: x\r\n\r\n", 2, 1},
		{a + "GET /large HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n" + a, 3, 2},
	} {
		before := s.seen.Load()
		got := strings.Count(s.answers(t, c.send), "HTTP/1.1 200 OK\r\n")
		if n := s.seen.Load() - before; got != c.answers || n != int64(c.server) {
			t.Errorf("%.100q: %d answers, %d of them by the server; want %d and %d", c.send, got, n, c.answers, c.server)
		}
	}
}

// memory is a listener whose connections are pipes, for a bubble of synctest.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newMemory() *memory { return &memory{conns: make(chan net.Conn), done: make(chan struct{})} }

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}
func (m *memory) Close() error   { m.once.Do(func() { close(m.done) }); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }
func (m *memory) dial() net.Conn { a, b := net.Pipe(); m.conns <- a; return b }
func ask(t *testing.T, c net.Conn, r *bufio.Reader) {
	t.Helper()
	io.WriteString(c, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
}

// TestLimits: how long a connection may be silent, before its first request and
// after, and how long an answer may wait to be taken.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		l := fastlane.New(m, fastlane.Config{Handler: lane})
		ended := func(c io.Reader) time.Duration {
			begun := time.Now()
			io.Copy(io.Discard, c)
			return time.Since(begun)
		}
		if d := ended(m.dial()); d != 10*time.Second {
			t.Errorf("silent from the start: closed after %s", d)
		}
		c := m.dial()
		r := bufio.NewReader(c)
		for range 10 { // each within its time
			ask(t, c, r)
			time.Sleep(100 * time.Second)
		}
		for range 7 {
			ask(t, c, r)
			time.Sleep(time.Second)
		}
		if d := ended(r); d < 110*time.Second || d > 120*time.Second {
			t.Errorf("silent after a request: closed after %s", d)
		}
		c = m.dial()
		begun := time.Now()
		for { // nothing is read
			if _, err := io.WriteString(c, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				break
			}
		}
		if d := time.Since(begun); d < 30*time.Second || d > 40*time.Second {
			t.Errorf("nothing taken: closed after %s", d)
		}
		l.Close()
	})
}

// TestClose ends idle connections, lets an answer under way be taken, and waits
// for nobody for long; also for connections that the server has not accepted.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		l := fastlane.New(m, fastlane.Config{Handler: lane})
		idle, busy, stuck, away := m.dial(), m.dial(), m.dial(), m.dial()
		ask(t, idle, bufio.NewReader(idle))
		io.WriteString(busy, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
		io.WriteString(stuck, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
		io.WriteString(away, "POST / HTTP/1.1\r\n")
		synctest.Wait()
		begun := time.Now()
		closed := make(chan error)
		go func() { closed <- l.Close() }()
		synctest.Wait()
		if out, err := io.ReadAll(busy); err != nil || !bytes.HasSuffix(out, small) {
			t.Errorf("answer under way: %q, %v", out, err)
		}
		for name, c := range map[string]net.Conn{"idle": idle, "not accepted": away} {
			if out, err := io.ReadAll(c); err != nil || len(out) > 0 {
				t.Errorf("%s: %q, %v", name, out, err)
			}
		}
		if err := <-closed; err != nil || time.Since(begun) > 2*time.Second {
			t.Errorf("closed after %s: %v", time.Since(begun), err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
	})
}

// TestShutdown: the server's own graceful stop ends the lane's connections too.
func TestShutdown(t *testing.T) {
	s := start(t, &fastlane.Config{Handler: lane})
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	ask(t, conn, r)
	if err := s.http.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the stop: %v", err)
	}
}

// failing has errors before connections.
type failing struct {
	*memory
	errs chan error
}

func (f *failing) Accept() (net.Conn, error) {
	select {
	case err := <-f.errs:
		return nil, err
	default:
		return f.memory.Accept()
	}
}

// TestAcceptErrors are the server's to judge.
func TestAcceptErrors(t *testing.T) {
	want := errors.New("too many open files")
	m := &failing{newMemory(), make(chan error, 1)}
	m.errs <- want
	l := fastlane.New(m, fastlane.Config{Handler: lane})
	if _, err := l.Accept(); !errors.Is(err, want) {
		t.Errorf("%v", err)
	}
	c := m.dial()
	ask(t, c, bufio.NewReader(c))
	l.Close()
}

// TestSendfileStaysOpen: a connection that was given away leads to the one below.
func TestSendfileStaysOpen(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := fastlane.New(tcp, fastlane.Config{Handler: lane})
	defer l.Close()
	client, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "HEAD / HTTP/1.1\r\n")
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(io.ReaderFrom); !ok {
		t.Error("no ReadFrom")
	}
	if below, ok := conn.(interface{ NetConn() net.Conn }); !ok {
		t.Error("no NetConn")
	} else if _, ok := below.NetConn().(*net.TCPConn); !ok {
		t.Errorf("below lies a %T", below.NetConn())
	}
	first := make([]byte, 3)
	if _, err := io.ReadFull(conn, first); err != nil || string(first) != "HEA" {
		t.Errorf("%q, %v", first, err)
	}
}
