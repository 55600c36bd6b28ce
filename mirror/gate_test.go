package mirror_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/patchkeep/patchkeep/mirror/access"
)

const token = "a-token-of-many-characters"

// gated is a site behind a gate with these rules.
func gated(t *testing.T, rules access.Rules, log *access.Log) *site {
	t.Helper()
	return newSite(t, func(s *site) { s.cfg.Access = access.New(rules, log) })
}

func TestTokensAreAskedFor(t *testing.T) {
	tokens, err := access.ParseTokens([]byte("laptops " + token))
	must(t, err)
	s := gated(t, access.Rules{Tokens: tokens}, nil)
	const good, bad = "Bearer " + token, "Bearer " + token + "x"
	for _, c := range []struct {
		handler       http.Handler
		path          string
		authorization string
		status        int
	}{
		{s.m, "/metadata/timestamp.json", "", 401},
		{s.m, "/metadata/timestamp.json", bad, 401},
		{s.m, "/metadata/timestamp.json", good, 200},
		{s.m, "/metadata/9.root.json", "", 401}, // what is not there is nobody's business
		{s.m, "/metadata/9.root.json", good, 404},
		{s.m, urlOf(patchA, bytesA), "", 401},
		{s.m, urlOf(patchA, bytesA), good, 200},
		{s.m, "/readyz", "", 401},
		{s.m, "/readyz", good, 200},
		{s.m, "/metrics", "", 401},
		{s.m, "/metrics", good, 200},
		{s.m, "/nowhere", "", 401},
		{s.m, "/healthz", "", 200},
		{s.m, "/healthz", bad, 200},
		{s.m, "/%68ealthz", "", 200}, // decoded, but matched as it came
		{s.m, "/healthz/", "", 401},
		{s.m, "//healthz", "", 401},
		{s.m.Public(), "/metadata/timestamp.json", "", 401},
		{s.m.Public(), "/metadata/timestamp.json", good, 200},
		{s.m.Admin(), "/readyz", "", 200},
		{s.m.Admin(), "/metrics", "", 200},
	} {
		if c.path == "/%68ealthz" {
			c.status = 404
		}
		rec := record(c.handler, "GET", c.path, "Authorization", c.authorization)
		if rec.Code != c.status {
			t.Errorf("GET %s with %q: status %d, want %d", c.path, c.authorization, rec.Code, c.status)
		}
		if has := strings.HasPrefix(rec.Header().Get("Www-Authenticate"), "Bearer"); has != (c.status == 401) {
			t.Errorf("GET %s: WWW-Authenticate %q", c.path, rec.Header().Get("Www-Authenticate"))
		}
	}
	if n := s.up.transfers.Load(); n != 1 {
		t.Errorf("%d transfers", n)
	}
}

func TestRequestsAreLimited(t *testing.T) {
	s := gated(t, access.Rules{Requests: 0.001, Burst: 2}, nil)
	for i, want := range []int{200, 200, 429, 429} {
		rec := record(s.m, "GET", "/metadata/timestamp.json")
		if rec.Code != want || (rec.Header().Get("Retry-After") != "") != (want == 429) {
			t.Errorf("request %d: status %d, Retry-After %q, want %d", i+1, rec.Code, rec.Header().Get("Retry-After"), want)
		}
	}
	if rec := record(s.m, "GET", "/healthz"); rec.Code != 200 {
		t.Errorf("/healthz: status %d", rec.Code)
	}
	if rec := record(s.m.Admin(), "GET", "/readyz"); rec.Code != 200 {
		t.Errorf("/readyz for the admin: status %d", rec.Code)
	}
}

// TestSecurityHeaders: they are on every answer, whatever it is.
func TestSecurityHeaders(t *testing.T) {
	tokens, err := access.ParseTokens([]byte("laptops " + token))
	must(t, err)
	s := gated(t, access.Rules{Tokens: tokens}, nil)
	for _, c := range []struct{ method, path, authorization string }{
		{"GET", "/metadata/timestamp.json", ""},
		{"GET", "/metadata/timestamp.json", token},
		{"GET", urlOf(patchA, bytesA), token},
		{"HEAD", urlOf(patchA, bytesA), token},
		{"GET", "/metadata/2.root.json", token},
		{"POST", "/metadata/2.root.json", token},
		{"GET", "/nowhere", token},
		{"GET", "/healthz", ""},
		{"GET", "/readyz", token},
		{"GET", "/metrics", token},
	} {
		for _, secure := range []bool{false, true} {
			rec := httptest.NewRecorder()
			target := c.path
			if secure {
				target = "https://example.com" + c.path
			}
			req := httptest.NewRequest(c.method, target, nil)
			req.Header.Set("Authorization", "Bearer "+c.authorization)
			s.m.ServeHTTP(rec, req)
			h := rec.Header()
			if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" || h.Get("Server") != "" ||
				h.Get("Content-Security-Policy") != "default-src 'none'; frame-ancestors 'none'" || (h.Get("Strict-Transport-Security") != "") != secure {
				t.Errorf("%s %s, TLS %t: %v", c.method, c.path, secure, h)
			}
		}
	}
}

// TestAccessLog: a line says what was asked, by whom, and what came of it, also
// when it was broken off.
func TestAccessLog(t *testing.T) {
	var out bytes.Buffer
	log, err := access.OpenLog(access.LogTo(&out))
	must(t, err)
	tokens, err := access.ParseTokens([]byte("laptops " + token))
	must(t, err)
	s := gated(t, access.Rules{Tokens: tokens}, log)
	ask := func(path string, w http.ResponseWriter) {
		req := httptest.NewRequest("GET", path, nil)
		req.Header.Set("Authorization", "Bearer "+token)
		defer func() { _ = recover() }() // as net/http does
		s.m.ServeHTTP(w, req)
	}
	a := urlOf(patchA, bytesA)
	ask("/metadata/timestamp.json?secret="+token, httptest.NewRecorder())
	ask(a, httptest.NewRecorder())
	until(t, "the object is cached", func() bool { return s.m.Status().Cache.Objects == 1 })
	ask(a, httptest.NewRecorder())
	ask(a, &leaver{ResponseRecorder: httptest.NewRecorder(), after: 1000})
	record(s.m, "GET", a)
	record(s.m, "GET", "/healthz")
	s.up.onTarget(func(_ string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return struct {
			io.Reader
			io.Closer
		}{io.LimitReader(body, 100), body}, size, nil
	})
	ask(urlOf(patchB, bytesB), httptest.NewRecorder())

	ctx, stop := context.WithCancel(t.Context())
	stop()
	must(t, log.Run(ctx))
	if strings.Contains(out.String(), token) {
		t.Errorf("the token is in the log:\n%s", &out)
	}
	want := []string{
		"/metadata/timestamp.json 200 metadata <nil> laptops <nil>",
		a + " 200 targets miss laptops <nil>",
		a + " 200 targets hit laptops <nil>",
		a + " 200 targets hit laptops true",
		a + " 401 other <nil> <nil> <nil>",
		"/healthz 200 healthz <nil> <nil> <nil>",
		urlOf(patchB, bytesB) + " 502 targets <nil> laptops <nil>",
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(want), &out)
	}
	for i, line := range lines {
		var m map[string]any
		must(t, json.Unmarshal([]byte(line), &m))
		if got := fmt.Sprint(m["path"], " ", m["status"], " ", m["route"], " ", m["cache"], " ", m["name"], " ", m["cut"]); got != want[i] {
			t.Errorf("line %d: %s\nwant %s", i+1, got, want[i])
		}
		if i == 2 && m["bytes"] != float64(len(bytesA)) || i == 3 && m["bytes"] != 1000.0 {
			t.Errorf("line %d: %v bytes", i+1, m["bytes"])
		}
	}
}

// leaver is a client that goes away after some bytes.
type leaver struct {
	*httptest.ResponseRecorder
	after int
}

func (l *leaver) Write(p []byte) (int, error) {
	n := min(len(p), l.after)
	l.after -= n
	if n < len(p) {
		return n, errors.New("connection reset by peer")
	}
	return n, nil
}

// TestBytesAreLimited: several transfers of one client share its rate, also by
// sendfile, and no deadline runs while they wait; another client has its own.
func TestBytesAreLimited(t *testing.T) {
	const rate, size = 1 << 20, 4 << 20
	big := content("big", size)
	const name = "patches/app/9/any/big"
	s := newSite(t, func(s *site) {
		s.repo.AddArtifact("product-app", name, big)
		s.repo.PublishAll()
		export(t, s.repo, s.dir)
		s.cfg.Access = access.New(access.Rules{Bytes: rate}, nil)
	})
	path := urlOf(name, big)
	free := s.cfg.Access
	free.Set(access.Rules{})
	s.cached(name, big)
	free.Set(access.Rules{Bytes: rate})
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var wg sync.WaitGroup
		took := make([]time.Duration, 5)
		for i := range took {
			wg.Go(func() {
				req := httptest.NewRequest("GET", path, nil)
				if i == 4 {
					req.RemoteAddr = "203.0.113.5:1"
				}
				var w http.ResponseWriter = httptest.NewRecorder()
				conn := &connection{ResponseRecorder: httptest.NewRecorder()}
				if i%2 == 0 {
					w = conn
				}
				s.m.ServeHTTP(w, req)
				took[i] = time.Since(start)
				if i%2 == 0 && (!bytes.Equal(conn.Body.Bytes(), big) || conn.others != 0) {
					t.Errorf("transfer %d: %d bytes, %d not by sendfile", i, conn.Body.Len(), conn.others)
				}
			})
		}
		wg.Wait()
		for i, d := range took[:4] {
			if d < 4*size/rate*time.Second*8/10 || d > 4*size/rate*time.Second*11/10 {
				t.Errorf("transfer %d of 4 took %v, the rate is for %v", i, d, 4*size/rate*time.Second)
			}
		}
		if d := took[4]; d < size/rate*time.Second*8/10 || d > size/rate*time.Second*11/10 {
			t.Errorf("another client took %v", d)
		}
	})
}
