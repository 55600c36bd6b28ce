package access

import (
	"net"
	"syscall"
)

// maxUnsent is how many bytes the kernel takes for a connection beyond those
// that are on their way. Left to itself it takes up to 4 MiB: a few hundred slow
// readers would fill its memory for TCP, and then everybody is slow.
const maxUnsent = 128 << 10

// tcpNotSentLowat is TCP_NOTSENT_LOWAT, which package syscall does not have.
const tcpNotSentLowat = 25

// limitUnsent sets that. A connection that cannot have it is served all the same.
func limitUnsent(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, maxUnsent)
	})
}
