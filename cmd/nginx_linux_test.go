package cmd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nginxConf is what differs between the peers of our benchmarks.
type nginxConf struct {
	HTTP    string // directives of http{}, such as proxy_cache_path
	Server  string // directives of its only server{}
	Listen  string // beside the address, such as "ssl"
	Workers int    // 0: one for each CPU
}

// peer is an nginx that runs.
type peer struct {
	addr string // host:port
	pid  int    // of the master
	stop func() // ends it, and returns when it has ended; more than once does no harm
}

// startNginx runs nginx, which is a package of every Linux distribution, until
// the test ends or stop is called.
func startNginx(t testing.TB, c nginxConf) *peer {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = "/usr/sbin/nginx" // not on everybody's PATH
	}
	dir := t.TempDir()
	addr := freeAddress(t)
	workers := "auto"
	if c.Workers > 0 {
		workers = strconv.Itoa(c.Workers)
	}
	user := ""
	if os.Geteuid() == 0 { // else its workers cannot come in here
		user = "user root;"
	}
	conf := fmt.Sprintf(`%s
daemon off;
worker_processes %s;
worker_rlimit_nofile 20000;
pid %[3]s/pid;
error_log %[3]s/error.log;
events { worker_connections 8192; }
http {
	access_log off;
	sendfile on;
	keepalive_requests 1000000000;
	client_body_temp_path %[3]s/body;
	proxy_temp_path %[3]s/proxy;
	fastcgi_temp_path %[3]s/fastcgi;
	uwsgi_temp_path %[3]s/uwsgi;
	scgi_temp_path %[3]s/scgi;
	%s
	server {
		listen %s backlog=8192 %s;
		%s
	}
}
`, user, workers, dir, c.HTTP, addr, c.Listen, c.Server)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.CommandContext(context.Background(), path, "-c", file, "-e", filepath.Join(dir, "error.log"))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start nginx, which the benchmarks compare with: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	p := &peer{addr: addr, pid: cmd.Process.Pid, stop: func() {
		cmd.Process.Signal(syscall.SIGTERM) // at once; the workers go with it
		<-ended
	}}
	t.Cleanup(p.stop)
	for range 600 {
		select {
		case <-ended:
			t.Fatalf("nginx ended: %s", log.String())
		default:
		}
		if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr); err == nil {
			conn.Close()
			return p
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("nginx does not listen")
	return nil
}

// freeAddress is a loopback address that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// cpuSeconds is the processor time that a process and its living children, such
// as nginx's workers, have used so far. It counts hundredths.
func cpuSeconds(t testing.TB, pid int) float64 {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	ticks, found := 0, false
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		// 7 (a name) S 1 …: see proc(5). The name may hold anything.
		f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		self := name == fmt.Sprintf("/proc/%d/stat", pid)
		if !self && f[1] != strconv.Itoa(pid) {
			continue
		}
		found = found || self
		for _, s := range f[11:13] { // utime, stime
			n, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			ticks += n
		}
	}
	if !found {
		t.Fatalf("process %d has ended", pid)
	}
	return float64(ticks) / 100
}
