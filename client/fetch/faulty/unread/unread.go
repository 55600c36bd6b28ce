// Package unread tells tests of killed programs what was sent to them and never
// reached them.
package unread

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// Known reports whether Bytes can tell on this system.
const Known = runtime.GOOS == "linux"

// Bytes is how much lies in the sockets between a server at addr, an IPv4
// host:port of this machine, and its clients: sent and not received, or
// received and not read. 0 if it is not Known.
func Bytes(t testing.TB, addr string) (n int64) {
	t.Helper()
	if !Known {
		return 0
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	server := fmt.Sprintf(":%04X", number)
	for line := range strings.Lines(string(table)) {
		// sl, local, remote, state, tx_queue:rx_queue, …: proc_net_tcp(5)
		f := strings.Fields(line)
		const established = "01"
		if len(f) < 5 || f[3] != established {
			continue
		}
		sent, received, _ := strings.Cut(f[4], ":")
		queue := "0"
		switch {
		case strings.HasSuffix(f[1], server):
			queue = sent
		case strings.HasSuffix(f[2], server):
			queue = received
		}
		q, err := strconv.ParseInt(queue, 16, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		n += q
	}
	return n
}
