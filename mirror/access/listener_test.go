package access

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/rs/zerolog"
)

// site accepts through a gate and keeps what it accepted.
func site(t *testing.T, rules Rules, logTo io.Writer) (g *Gate, dial func() net.Conn, accepted chan net.Conn) {
	t.Helper()
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g = New(rules, nil)
	l := g.Listener(zerolog.New(logTo).WithContext(t.Context()), inner)
	accepted = make(chan net.Conn, 10)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return g, func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}, accepted
}

// isClosed waits for the end of a connection.
func isClosed(c net.Conn) bool {
	_, err := c.Read(make([]byte, 1))
	return err != nil
}

func TestConnectionsAreLimited(t *testing.T) {
	proxies, err := ParseProxies([]string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		rules Rules
		limit int // 0: none
	}{
		"of a client": {Rules{Conns: 2}, 2},
		"in all":      {Rules{MaxConns: 2}, 2},
		"both":        {Rules{Conns: 3, MaxConns: 2}, 2},
		"of a proxy":  {Rules{Conns: 2, Proxies: proxies}, 0},
		"none":        {Rules{}, 0},
	} {
		var log bytes.Buffer
		g, dial, accepted := site(t, c.rules, &log)
		dial()
		first := <-accepted
		dial()
		second := <-accepted
		if c.limit == 0 {
			dial()
			(<-accepted).Close()
			continue
		}
		for range 3 {
			if !isClosed(dial()) {
				t.Errorf("%s: a third connection stays open", what)
			}
		}
		if s := g.Stats(); s.Refused != 3 || s.Conns != 2 {
			t.Errorf("%s: %+v", what, s)
		}
		first.Close()
		first.Close() // counts once
		dial()
		third := <-accepted
		if !isClosed(dial()) {
			t.Errorf("%s: closing twice made room for two", what)
		}
		second.Close()
		third.Close()
		if s := g.Stats(); s.Conns != 0 || g.clients.idle.Len() != g.clients.len() {
			t.Errorf("%s: %+v at the end", what, s)
		}
		if n := bytes.Count(log.Bytes(), []byte("\n")); n != 1 {
			t.Errorf("%s: %d lines about four refusals: %s", what, n, &log)
		}
	}
}

// TestAcceptedIsStillTCP: or there is no sendfile.
func TestAcceptedIsStillTCP(t *testing.T) {
	_, dial, accepted := site(t, Rules{Conns: 2}, io.Discard)
	dial()
	c := <-accepted
	defer c.Close()
	if _, ok := c.(io.ReaderFrom); !ok {
		t.Errorf("%T has no ReadFrom", c)
	}
	if _, ok := c.(interface{ CloseWrite() error }); !ok { // net/http uses it
		t.Errorf("%T has no CloseWrite", c)
	}
}
