package access

import (
	"net"
	"syscall"
	"testing"
)

// TestUnsent: the kernel takes little for a client that does not read. The
// listener's own setting is not inherited.
func TestUnsent(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(Rules{}, nil).Listener(t.Context(), inner)
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
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	if e := raw.Control(func(fd uintptr) { got, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	if got != maxUnsent {
		t.Errorf("the kernel takes %d bytes, want %d", got, maxUnsent)
	}
}
