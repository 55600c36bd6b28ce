package mirror_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/patchkeep/patchkeep/mirror/access"
)

// lane is a server of the mirror whose listener has the fast lane.
func (s *site) lane(t testing.TB) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(s.m)
	srv.Listener = s.m.Listener(srv.Listener, 0)
	srv.Config.ConnState = s.m.ConnState
	srv.Start()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv
}

var dateLine = regexp.MustCompile(`(?m)^Date: .*\r\n`)

// exchange sends requests over one connection, and a last one that ends it, and
// returns the answers without their Date.
func exchange(t testing.TB, addr, requests string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, requests+"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	must(t, err)
	out, err := io.ReadAll(conn)
	must(t, err)
	answers := dateLine.ReplaceAllString(string(out), "")
	last := strings.LastIndex(answers, "HTTP/1.1 200 OK\r\n")
	if last < 0 || !strings.HasSuffix(answers, "\r\n\r\nok\n") {
		t.Fatalf("%q: no last answer in %.300q", requests, answers)
	}
	return answers[:last]
}

// TestFastLane: with it or without, the answers are the same to the byte, and
// so is what is counted.
func TestFastLane(t *testing.T) {
	noLeak(t)
	s := newSite(t)
	s.want(patchA, bytesA)
	fast := s.lane(t)
	tag := record(s.m, "HEAD", "/metadata/1.product-app.json", "Accept-Encoding", "zstd").Header().Get("Etag")
	for _, path := range []string{
		"/metadata/timestamp.json", "/metadata/1.root.json", "/metadata/2.root.json", "/metadata/3.root.json", "/metadata/1.product-app.json",
		"/metadata/1.product-app.jso", "/metadata/%31.root.json", "/metadata/", "/metadata", "/metadata/../metadata/timestamp.json",
		"/metadata//timestamp.json", "/healthz?", "/", "/nowhere", urlOf(empty, nil), urlOf(patchA, bytesA), "/targets/../metadata/timestamp.json",
	} {
		for _, header := range []string{
			"", "Accept-Encoding: gzip\r\n", "Accept-Encoding: zstd, gzip;q=0.5\r\nUser-Agent: x\r\n", "Accept-Encoding: *;q=0\r\n",
			"If-None-Match: " + tag + "\r\n", "If-None-Match: *\r\nAccept-Encoding: zstd\r\n", "if-none-match: W/" + tag + ", \"x\"\r\nConnection: keep-alive\r\n",
			"Accept-Encoding: zstd\r\nAccept-Encoding: gzip;q=0.1\r\n", "Range: bytes=0-4\r\n", "Authorization: Bearer x\r\n", "X-Forwarded-For: 192.0.2.1\r\n", "1.0",
		} {
			request := "GET " + path + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n"
			if header == "1.0" {
				request = "GET " + path + " HTTP/1.0\r\nHost: x\r\nConnection: Keep-Alive\r\n\r\n"
			}
			head := "HEAD" + strings.TrimPrefix(request, "GET")
			all := request + request + head + request
			got, want := exchange(t, fast.Listener.Addr().String(), all), exchange(t, s.srv.Listener.Addr().String(), all)
			if got != want {
				t.Errorf("%q:\nwith the lane %.600q\nwithout       %.600q", request, got, want)
			}
		}
	}
}

// TestFastLaneCounts what it answers, and connections once, whoever has them.
func TestFastLaneCounts(t *testing.T) {
	s := newSite(t)
	addr := s.lane(t).Listener.Addr().String()
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	r := bufio.NewReader(conn)
	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		{"GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n", 304},
		{"GET /metadata/2.root.json HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		{"GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nX-Odd: 1\r\n\r\n", 200}, // from here on it is the server's
		{"GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	} {
		io.WriteString(conn, c.request)
		resp, err := http.ReadResponse(r, nil)
		must(t, err)
		io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != c.status {
			t.Errorf("%q: status %d", c.request, resp.StatusCode)
		}
	}
	size := len(s.repo.Latest("timestamp"))
	until(t, "all is counted", func() bool {
		_, body := s.get("/metrics")
		for _, line := range []string{
			`requests_total{code="200",route="metadata"} 3`, `requests_total{code="304",route="metadata"} 1`, `requests_total{code="404",route="metadata"} 1`,
			fmt.Sprintf(`sent_bytes_total{route="metadata"} %d`, 3*size+len("Not Found\n")),
			`mirror_connections 1`, `connections_total 1`,
		} {
			if !strings.Contains(string(body), line) {
				return false
			}
		}
		return true
	})
	conn.Close()
	until(t, "the connection is gone", func() bool {
		_, body := s.get("/metrics")
		return strings.Contains(string(body), "mirror_connections 0")
	})
}

// TestFastLaneGate: limits and rights count on it, and it is in the log.
func TestFastLaneGate(t *testing.T) {
	var out bytes.Buffer
	var mu sync.Mutex
	log, err := access.OpenLog(access.LogTo(lockedWriter{&mu, &out}))
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- log.Run(ctx) }()
	gate := access.New(access.Rules{Requests: 0.001, Burst: 3}, log)
	s := newSite(t, func(s *site) { s.cfg.Access = gate })
	addr := s.lane(t).Listener.Addr().String()
	request := "GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nUser-Agent: agent/1\r\n\r\n"
	if got := exchange(t, addr, strings.Repeat(request, 5)); strings.Count(got, "HTTP/1.1 200") != 3 || strings.Count(got, "HTTP/1.1 429") != 2 {
		t.Errorf("%.2000q", got)
	}
	gate.Set(access.Rules{Certs: true})
	if got := exchange(t, addr, request); !strings.HasPrefix(got, "HTTP/1.1 401") {
		t.Errorf("%.200q", got)
	}
	stop()
	must(t, <-done)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 8 {
		t.Fatalf("log: %q", lines)
	}
	for i, line := range slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, `"/healthz"`) }) {
		var e struct {
			Client, Method, Path, Proto, Agent, Route string
			Status, Bytes                             int
		}
		must(t, json.Unmarshal([]byte(line), &e))
		want := []int{200, 200, 200, 429, 429, 401}[i]
		if e.Status != want || e.Client != "127.0.0.1" || e.Method != "GET" || e.Path != "/metadata/timestamp.json" || e.Proto != "HTTP/1.1" || e.Agent != "agent/1" ||
			want == 200 && (e.Route != "metadata" || e.Bytes != len(s.repo.Latest("timestamp"))) {
			t.Errorf("line %d: %s", i, line)
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// BenchmarkFastLane is sixteen answers of it in one read.
func BenchmarkFastLane(b *testing.B) {
	s := newSite(b)
	srv := s.lane(b)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	must(b, err)
	defer conn.Close()
	const batch = 16
	request := []byte(strings.Repeat("GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n", batch))
	first := exchange(b, srv.Listener.Addr().String(), string(request[:len(request)/batch]))
	buf := make([]byte, batch*(len(first)+len("Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n")))
	b.ReportAllocs()
	for b.Loop() {
		_, err := conn.Write(request)
		must(b, err)
		_, err = io.ReadFull(conn, buf)
		must(b, err)
	}
}
