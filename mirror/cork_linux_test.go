package mirror

import (
	"net"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
)

// wrapped is a connection as a listener may hand it on.
type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

// TestCork: a large answer goes out corked, through whatever lies over the
// connection, and what comes after it does not.
func TestCork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	corked := func() (on int) {
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { on, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK) })
		}
		if err != nil {
			t.Fatal(err)
		}
		return on
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r = r.WithContext(ConnContext(r.Context(), wrapped{wrapped{conn}}))
	uncork := cork(r)
	if corked() == 0 {
		t.Error("not corked")
	}
	uncork()
	if corked() != 0 {
		t.Error("corked for ever")
	}
	cork(httptest.NewRequest(http.MethodGet, "/", nil))() // without a connection it is nothing
}
