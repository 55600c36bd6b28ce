package mirror_test

import (
	"bufio"
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
)

func TestServes(t *testing.T) {
	s := newSite(t)
	ts, _ := s.get("/metadata/timestamp.json")
	tag := ts.Header.Get("Etag")
	a := urlOf(patchA, bytesA)
	tagA := `"` + hashOf(bytesA) + `"`
	sum512 := sha512.Sum512(bytesB)
	last := fmt.Sprint(len(bytesA) - 1)
	for _, c := range []struct {
		method, path string
		headers      []string
		status       int
		want         string // header=value, several by "; "
		body         []byte // nil: not checked
	}{
		{"GET", "/metadata/timestamp.json", nil, 200, "Content-Type=application/json; Cache-Control=no-cache; X-Content-Type-Options=nosniff", s.repo.Latest("timestamp")},
		{"HEAD", "/metadata/timestamp.json", nil, 200, "Etag=" + tag + "; Content-Length=" + fmt.Sprint(len(s.repo.Latest("timestamp"))), []byte{}},
		{"GET", "/metadata/timestamp.json", []string{"If-None-Match", tag}, 304, "Etag=" + tag + "; Content-Length=", []byte{}},
		{"GET", "/metadata/timestamp.json", []string{"If-None-Match", `"x", W/` + tag}, 304, "", []byte{}},
		{"GET", "/metadata/timestamp.json", []string{"If-None-Match", "*"}, 304, "", []byte{}},
		{"GET", "/metadata/timestamp.json", []string{"If-None-Match", `"x"`}, 200, "", nil},
		{"GET", "/metadata/timestamp.json?x=1", nil, 200, "", nil},
		{"GET", "/metadata/1.root.json", nil, 200, "Cache-Control=public, max-age=31536000, immutable", s.root},
		{"GET", "/metadata/1.roo%74.json", nil, 200, "", s.root},
		{"GET", "/metadata/2.snapshot.json", nil, 200, "", s.repo.Latest("snapshot")},
		{"GET", "/metadata/1.snapshot.json", nil, 404, "", nil}, // upstream has it, no view here had
		{"GET", "/metadata/2.root.json", nil, 404, "Cache-Control=public, max-age=1", nil},
		{"GET", "/metadata/3.root.json", nil, 404, "Cache-Control=no-store", nil},
		{"GET", "/metadata/root.json", nil, 404, "", nil},
		{"GET", "/metadata/", nil, 404, "", nil},
		{"GET", "/metadata", nil, 404, "", nil},
		{"POST", "/metadata/timestamp.json", nil, 405, "Allow=GET, HEAD", nil},
		{"PUT", a, nil, 405, "Allow=GET, HEAD", nil},
		{"DELETE", "/", nil, 405, "Allow=GET, HEAD", nil},
		{"GET", "/", nil, 404, "", nil},

		{"HEAD", a, nil, 200, "Etag=" + tagA + "; Content-Length=300000; Accept-Ranges=bytes", []byte{}},
		{"GET", a, []string{"If-None-Match", tagA}, 304, "Etag=" + tagA, []byte{}},
		{"GET", a, nil, 200, "Etag=" + tagA + "; Content-Length=300000; Content-Type=application/octet-stream; X-Content-Type-Options=nosniff; Accept-Ranges=bytes; Cache-Control=public, max-age=31536000, immutable", bytesA},
		{"GET", a, []string{"Range", "bytes=0-0"}, 206, "Content-Range=bytes 0-0/300000; Content-Length=1", bytesA[:1]},
		{"GET", a, []string{"Range", "bytes=299990-"}, 206, "Content-Range=bytes 299990-299999/300000", bytesA[299990:]},
		{"GET", a, []string{"Range", "bytes=-10"}, 206, "", bytesA[299990:]},
		{"GET", a, []string{"Range", "bytes=299990-999999999999"}, 206, "", bytesA[299990:]},
		{"GET", a, []string{"Range", "bytes=-0"}, 200, "", bytesA},
		{"GET", a, []string{"Range", "bytes=5-9, -00"}, 200, "", bytesA},
		{"GET", a, []string{"Range", "bytes=300000-"}, 416, "Content-Range=bytes */300000", nil},
		{"GET", a, []string{"Range", "bytes=5-2"}, 416, "", nil},
		{"GET", a, []string{"Range", "bytes=99999999999999999999-"}, 416, "", nil},
		{"GET", a, []string{"Range", "pages=1-2"}, 416, "", nil},
		{"GET", a, []string{"Range", "bytes=0-9", "If-Range", tagA}, 206, "", bytesA[:10]},
		{"GET", a, []string{"Range", "bytes=0-9", "If-Range", `"other"`}, 200, "", bytesA},
		{"GET", a, []string{"Range", "bytes=0-9", "If-Range", "Mon, 02 Jan 2006 15:04:05 GMT"}, 200, "", bytesA},
		{"GET", a, []string{"Range", "bytes=" + strings.Repeat("0-,", 40) + "0-"}, 200, "", bytesA},
		{"GET", a, []string{"Range", "bytes=0-" + last + ",0-" + last}, 200, "", bytesA},
		{"GET", a, []string{"If-Match", `"other"`}, 412, "", nil},
		{"HEAD", a, []string{"Range", "bytes=0-9"}, 206, "Content-Length=10", []byte{}},
		{"GET", urlOf(patchB, bytesB), nil, 200, "", bytesB},
		{"GET", "/" + layout.EscapePath(layout.TargetObject(patchB, hex.EncodeToString(sum512[:]))), nil, 200, "", bytesB},
		{"GET", urlOf(empty, nil), nil, 200, "Content-Length=0", []byte{}},
		{"HEAD", urlOf(empty, nil), nil, 200, "Content-Length=0", []byte{}},
		{"GET", urlOf(empty, nil), []string{"Range", "bytes=0-"}, 200, "", []byte{}},
		{"GET", "/targets/" + patchA, nil, 404, "", nil}, // without its hash
		{"GET", urlOf(patchA, bytesB), nil, 404, "", nil},

		{"GET", "/healthz", nil, 200, "", []byte("ok\n")},
		{"GET", "/readyz", nil, 200, "Content-Type=application/json", nil},
		{"GET", "/metrics", nil, 200, "", nil},
	} {
		resp, body := s.do(c.method, c.path, c.headers...)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s %q: status %d, want %d", c.method, c.path, c.headers, resp.StatusCode, c.status)
		}
		if c.body != nil && !bytes.Equal(body, c.body) {
			t.Errorf("%s %s %q: %d bytes, not the %d expected", c.method, c.path, c.headers, len(body), len(c.body))
		}
		for _, h := range strings.Split(c.want, "; ") {
			if k, v, ok := strings.Cut(h, "="); ok && resp.Header.Get(k) != v {
				t.Errorf("%s %s %q: %s is %q, want %q", c.method, c.path, c.headers, k, resp.Header.Get(k), v)
			}
		}
	}
	if n := s.up.transfers.Load(); n != 2 {
		t.Errorf("%d transfers for two objects: the empty one is known", n)
	}
}

func TestServesSeveralRanges(t *testing.T) {
	s := newSite(t)
	resp, body := s.get(urlOf(patchA, bytesA), "Range", "bytes=0-9,100-199")
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" || resp.StatusCode != 206 {
		t.Fatalf("status %d, type %q", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for _, want := range [][]byte{bytesA[:10], bytesA[100:200]} {
		p, err := parts.NextPart()
		must(t, err)
		if got, err := io.ReadAll(p); err != nil || !bytes.Equal(got, want) {
			t.Errorf("part %s: %d bytes, %v", p.Header.Get("Content-Range"), len(got), err)
		}
	}
}

// TestHostilePaths sends what no HTTP client library would: none of it may
// reach the upstream or make anything on the disk.
func TestHostilePaths(t *testing.T) {
	s := newSite(t)
	before, fetched := s.files("."), s.up.fetches.Load()
	sum := hashOf(bytesA)
	for _, path := range []string{
		"/targets/../metadata/timestamp.json",
		"/targets/..%2f..%2fetc/passwd",
		"/targets/%2e%2e/%2e%2e/etc/passwd",
		"/targets/patches/app/1.0/any/../any/" + sum + ".app.deb",
		"/targets/patches%2Fapp%2F1.0%2Fany%2F" + sum + ".app.deb",
		"/targets//patches/app/1.0/any/" + sum + ".app.deb",
		"//targets/patches/app/1.0/any/" + sum + ".app.deb",
		"/targets/patches/app/1.0/any/" + sum + ".app.deb/",
		"/targets/patches/app/1.0/any/" + sum + ".app.deb%00",
		"/targets/patches/app/1.0/any/" + sum + ".app.deb%00.txt",
		"/targets/patches/app/1.0/any/" + strings.ToUpper(sum) + ".app.deb",
		"/targets/patches\\app\\1.0\\any\\" + sum + ".app.deb",
		"/targets/patches/app/1.0/any/" + sum + ".APP.deb",
		"/targets/%",
		"/targets/%zz",
		"/metadata/../lock",
		"/metadata/..%2f..%2flock",
		"/metadata/%2e%2e%2flock",
		"/metadata//timestamp.json",
		"/metadata/./timestamp.json",
		"/metadata/timestamp.json/",
		"/metadata/timestamp.json%00",
		"/metadata/%74imestamp.json%2f",
		"/metadata/1.root.json%20",
		"/metadata/%31%2e..%2froot.json",
		"/metadata/99999999999999999999.root.json",
		"/metadata/%ff%fe",
		"/metrics/../metadata/timestamp.json",
		"/healthz/..",
		"/cas/sha256/" + sum[:2] + "/" + sum,
		"/tuf/root.json", "/lock", "/.git/config",
		"http://169.254.169.254/metadata/x",
		"http://169.254.169.254/targets/x",
		"/targets/http://169.254.169.254/x",
		"/" + strings.Repeat("a/", 2000),
	} {
		status, body := raw(t, s, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if status != 404 && status != 400 {
			t.Errorf("GET %s: status %d: %.80q", path, status, body)
		}
	}
	for what, request := range map[string]string{
		"smuggling: two lengths":      "GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		"smuggling: both framings":    "POST /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
		"smuggling: strange encoding": "GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
		"no host":                     "GET /metadata/timestamp.json HTTP/1.1\r\n\r\n",
		"two hosts":                   "GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"space in header name":        "GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nFoo : y\r\n\r\n",
		"NUL in path":                 "GET /metadata/time\x00stamp.json HTTP/1.1\r\nHost: x\r\n\r\n",
		"connect":                     "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"trace":                       "TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"rubbish":                     "\x16\x03\x01\x02\x00\r\n\r\n",
	} {
		if status, body := raw(t, s, request); status >= 200 && status < 400 {
			t.Errorf("%s: status %d: %.80q", what, status, body)
		}
	}
	if n := s.up.transfers.Load() + s.up.fetches.Load() - fetched; n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
	if after := s.files("."); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("files before: %v\nafter: %v", before, after)
	}
}

// raw sends bytes and returns the status of the answer, 0 if there is none.
func raw(t *testing.T, s *site, request string) (int, []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", s.srv.Listener.Addr().String())
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	if _, err := io.WriteString(conn, request); err != nil {
		return 0, nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return resp.StatusCode, body
}

// TestOddRoleNames: a client encodes a role once, whatever it is called.
func TestOddRoleNames(t *testing.T) {
	s := newSite(t)
	names := []string{"ü", "a/b", "a%2Fb", "../x", "?", "."}
	s.publish(func(r *tuftest.Repo) {
		for _, name := range names {
			r.Delegate("targets", tuftest.Delegation{Role: name, Paths: []string{"odd/" + fmt.Sprint(len(name)) + "/*"}})
		}
	})
	must(t, s.m.Refresh(t.Context()))
	for _, name := range names {
		resp, body := s.get("/metadata/" + layout.MetadataFile(name, 1))
		if resp.StatusCode != 200 || !bytes.Equal(body, s.repo.Latest(name)) {
			t.Errorf("role %q: status %d", name, resp.StatusCode)
		}
	}
}

// TestPublicAndAdmin: what strangers need not see can be kept from them.
func TestPublicAndAdmin(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		handler http.Handler
		path    string
		status  int
	}{
		{s.m.Public(), "/metadata/timestamp.json", 200},
		{s.m.Public(), urlOf(empty, nil), 200},
		{s.m.Public(), "/healthz", 200},
		{s.m.Public(), "/readyz", 404},
		{s.m.Public(), "/metrics", 404},
		{s.m.Admin(), "/metadata/timestamp.json", 404},
		{s.m.Admin(), "/healthz", 200},
		{s.m.Admin(), "/readyz", 200},
		{s.m.Admin(), "/metrics", 200},
	} {
		if got := record(c.handler, "GET", c.path).Code; got != c.status {
			t.Errorf("GET %s: status %d, want %d", c.path, got, c.status)
		}
	}
}

func TestMetrics(t *testing.T) {
	s := newSite(t)
	s.want(patchA, bytesA)
	until(t, "the object in the cache", func() bool { return s.m.Status().Cache.Objects == 1 })
	s.want(patchA, bytesA)
	s.get("/metadata/timestamp.json")
	s.get("/nowhere")
	_, body := s.get("/metrics")
	for _, line := range []string{
		`patchkeep_mirror_requests_total{code="200",route="targets"} 2`,
		`patchkeep_mirror_requests_total{code="200",route="metadata"} 1`,
		`patchkeep_mirror_requests_total{code="404",route="other"} 1`,
		`patchkeep_mirror_sent_bytes_total{route="targets"} 600000`,
		`patchkeep_mirror_received_bytes_total 300000`,
		`patchkeep_mirror_hits_total 1`,
		`patchkeep_mirror_misses_total 1`,
		`patchkeep_mirror_cache_bytes 300000`,
		`patchkeep_mirror_fills_total{result="done"} 1`,
		`patchkeep_mirror_view_version{role="timestamp"} 2`,
		`patchkeep_mirror_expiry_seconds{role="product-app"}`,
		`patchkeep_mirror_upstream_up{upstream="dir"} 1`,
		`patchkeep_mirror_ready 1`,
	} {
		if !strings.Contains(string(body), line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}

// TestSendfileIsReached: the connection is given the file itself, in pieces, and
// a deadline for each.
func TestSendfileIsReached(t *testing.T) {
	s := newSite(t)
	s.want(patchA, bytesA)
	for _, c := range []struct {
		headers []string
		want    []byte
	}{{nil, bytesA}, {[]string{"Range", "bytes=100-"}, bytesA[100:]}} {
		conn := &connection{ResponseRecorder: httptest.NewRecorder()}
		req := httptest.NewRequest("GET", urlOf(patchA, bytesA), nil)
		for i := 0; i < len(c.headers); i += 2 {
			req.Header.Set(c.headers[i], c.headers[i+1])
		}
		s.m.ServeHTTP(conn, req)
		if !bytes.Equal(conn.Body.Bytes(), c.want) || conn.files == 0 || conn.others != 0 || conn.deadlines == 0 {
			t.Errorf("%q: %d bytes, %d files, %d other readers, %d deadlines", c.headers, conn.Body.Len(), conn.files, conn.others, conn.deadlines)
		}
	}
}

// connection is a ResponseWriter with what net/http's own has.
type connection struct {
	*httptest.ResponseRecorder
	files, others, deadlines int

	mu       sync.Mutex
	deadline time.Time // guarded by mu; the last one
}

func (c *connection) ReadFrom(r io.Reader) (int64, error) {
	if lr, ok := r.(*io.LimitedReader); ok {
		if _, ok := lr.R.(*os.File); ok {
			c.files++
			return io.Copy(c.Body, r)
		}
	}
	c.others++
	return io.Copy(c.Body, r)
}

func (c *connection) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadlines++
	c.deadline = t
	return nil
}

func (c *connection) last() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// TestNoDeadlineWhileWaiting: a client that waits for a fill, however long, is
// not cut off for it, and has its time when the bytes come.
func TestNoDeadlineWhileWaiting(t *testing.T) {
	s := newSite(t)
	g := newGate(s.up)
	conn := &connection{ResponseRecorder: httptest.NewRecorder()}
	var wg sync.WaitGroup
	wg.Go(func() { s.m.ServeHTTP(conn, httptest.NewRequest("GET", urlOf(patchA, bytesA), nil)) })
	<-g.entered
	if d := conn.last(); !d.IsZero() {
		t.Errorf("deadline %v while waiting", d)
	}
	close(g.open)
	wg.Wait()
	if conn.last().IsZero() || !bytes.Equal(conn.Body.Bytes(), bytesA) {
		t.Errorf("deadline %v, %d bytes", conn.last(), conn.Body.Len())
	}
}
