package client_test

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

// quick is patience for tests: failures are final soon, also on a machine that
// is busy.
var quick = fetch.Options{
	Stall: 2 * time.Second, RateWindow: time.Second, MinRate: 10 << 10,
	Attempts: 2, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond,
}

// server serves a simulated repository with ETags, and what a test puts in its
// way.
type server struct {
	*tuftest.Repo
	root []byte
	url  string

	// evil answers a request itself, if it returns true.
	evil atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]

	requests, bytes atomic.Int64 // answered, and of their bodies
}

func newServer(t testing.TB) *server {
	s := &server{Repo: tuftest.New()}
	s.PublishAll()
	s.root = s.Published["root"][0]
	s.url = serveHonest(t, s)
	return s
}

// serveHonest serves s at another URL. It is honest unless s is told not to be.
func serveHonest(t testing.TB, s *server) string {
	ts := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(ts.Close)
	t.Cleanup(ts.CloseClientConnections) // first: a handler may wait for its client
	return ts.URL
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	w = &counter{w, &s.bytes}
	if evil := s.evil.Load(); evil != nil && (*evil)(w, r) {
		return
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	body := rec.Body.Bytes()
	tag := fmt.Sprintf(`"%x"`, sha256.Sum256(body))
	w.Header().Set("ETag", tag)
	if rec.Code == http.StatusOK && r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.WriteHeader(rec.Code)
	w.Write(body)
}

func (s *server) setEvil(f func(w http.ResponseWriter, r *http.Request) bool) { s.evil.Store(&f) }

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// open opens a client that ends with the test.
func open(t testing.TB, cfg client.Config) *client.Client {
	t.Helper()
	if cfg.Fetch.Stall == 0 {
		cfg.Fetch = quick
	}
	c, err := client.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
