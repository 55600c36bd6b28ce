package mirror_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store/dirstore"
)

// content is n bytes that are the same for the same seed and look like nothing
// else.
func content(seed string, n int) []byte {
	out := make([]byte, 0, n+sha256.Size)
	for i := 0; len(out) < n; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", seed, i))
		out = append(out, sum[:]...)
	}
	return out[:n]
}

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// urlOf is where a target lies, for a client.
func urlOf(path string, data []byte) string {
	return "/" + layout.EscapePath(layout.TargetObject(path, hashOf(data)))
}

const (
	patchA = "patches/app/1.0/any/app.deb"
	patchB = "patches/app/1.1/any/a b%2F ü.deb"
	empty  = "patches/app/1.0/any/empty"
)

var (
	bytesA = content("a", 300_000)
	bytesB = content("b", 70_000)
)

// newRepo has a product role with three files.
func newRepo() *tuftest.Repo {
	r := tuftest.New()
	r.Delegate("targets", tuftest.Delegation{Role: "product-app", Paths: []string{"patches/app/*/*/*"}, Terminating: true})
	r.AddArtifact("product-app", patchA, bytesA)
	r.AddArtifact("product-app", patchB, bytesB, "sha256", "sha512")
	r.AddArtifact("product-app", empty, nil)
	r.PublishAll()
	return r
}

// export writes a simulated repository to a directory, the timestamp last.
func export(t testing.TB, r *tuftest.Repo, dir string) {
	t.Helper()
	write := func(object string, data []byte, replace bool) {
		name := filepath.Join(dir, filepath.FromSlash(object))
		if _, err := os.Stat(name); err == nil && !replace {
			return
		}
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name+".tmp", data, 0o644))
		must(t, os.Rename(name+".tmp", name))
	}
	for path, data := range r.Artifacts {
		write(layout.TargetObject(path, hashOf(data)), data, false)
	}
	for role, versions := range r.Published {
		for i, data := range versions {
			if role != layout.RoleTimestamp {
				write(layout.MetadataObject(role, int64(i+1)), data, false)
			}
		}
	}
	write(layout.TimestampObject, r.Latest(layout.RoleTimestamp), true)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// faults is an upstream over a directory that a test can break.
type faults struct {
	upstream.Upstream
	name      string
	down      atomic.Bool
	transfers atomic.Int64 // OpenTarget
	fetches   atomic.Int64 // FetchMetadata
	bytes     atomic.Int64 // of targets

	mu       sync.Mutex
	metadata func(name string, data []byte, err error) ([]byte, error)                                       // guarded by mu
	target   func(object string, offset int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) // guarded by mu
}

func overDir(t testing.TB, dir string) *faults {
	t.Helper()
	s, err := dirstore.New(dir)
	must(t, err)
	return &faults{Upstream: upstream.FromStore(s, "dir"), name: "dir"}
}

var errDown = fmt.Errorf("%w: the line is down", tuf.ErrOffline)

func (f *faults) String() string { return f.name }

func (f *faults) onMetadata(fn func(name string, data []byte, err error) ([]byte, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.metadata = fn
}

func (f *faults) onTarget(fn func(object string, offset int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.target = fn
}

func (f *faults) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	f.fetches.Add(1)
	if f.down.Load() {
		return nil, errDown
	}
	data, err := f.Upstream.FetchMetadata(ctx, name, max)
	f.mu.Lock()
	fn := f.metadata
	f.mu.Unlock()
	if fn != nil {
		return fn(name, data, err)
	}
	return data, err
}

func (f *faults) OpenTarget(ctx context.Context, object string, offset int64) (io.ReadCloser, int64, error) {
	f.transfers.Add(1)
	if f.down.Load() {
		return nil, 0, errDown
	}
	body, size, err := f.Upstream.OpenTarget(ctx, object, offset)
	f.mu.Lock()
	fn := f.target
	f.mu.Unlock()
	if err == nil && fn != nil {
		body, size, err = fn(object, offset, body, size)
	}
	if err != nil {
		return nil, 0, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.TeeReader(body, counter{&f.bytes}), body}, size, nil
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

// site is a repository, an upstream of it, and a mirror with its server.
type site struct {
	t    testing.TB
	repo *tuftest.Repo
	root []byte
	dir  string // of the repository
	up   *faults
	cfg  mirror.Config
	m    *mirror.Mirror
	srv  *httptest.Server
	now  atomic.Pointer[time.Time] // nil: the real one
}

func newSite(t testing.TB, change ...func(*site)) *site {
	t.Helper()
	s := &site{t: t, repo: newRepo(), dir: t.TempDir()}
	s.root = s.repo.Published[layout.RoleRoot][0]
	export(t, s.repo, s.dir)
	s.up = overDir(t, s.dir)
	s.cfg = mirror.Config{
		Dir: t.TempDir(), Root: s.root, Upstreams: []upstream.Upstream{s.up},
		FailFor: time.Nanosecond, Backoff: time.Microsecond, Rest: time.Nanosecond, Patience: 50 * time.Millisecond,
		Now: func() time.Time {
			if now := s.now.Load(); now != nil {
				return *now
			}
			return time.Now()
		},
	}
	for _, c := range change {
		c(s)
	}
	s.start()
	must(t, s.m.Refresh(t.Context()))
	t.Cleanup(s.stop)
	return s
}

func (s *site) start() {
	s.t.Helper()
	m, err := mirror.New(context.Background(), s.cfg)
	must(s.t, err)
	s.m, s.srv = m, httptest.NewServer(m)
}

func (s *site) stop() {
	if s.m != nil {
		s.srv.CloseClientConnections()
		s.srv.Close()
		must(s.t, s.m.Close())
		s.m = nil
	}
}

func (s *site) publish(change func(r *tuftest.Repo)) {
	s.t.Helper()
	if change != nil {
		change(s.repo)
	}
	s.repo.PublishAll()
	export(s.t, s.repo, s.dir)
}

// get returns status, headers and the whole body.
func (s *site) get(path string, headers ...string) (*http.Response, []byte) {
	s.t.Helper()
	return s.do(http.MethodGet, path, headers...)
}

func (s *site) do(method, path string, headers ...string) (*http.Response, []byte) {
	s.t.Helper()
	resp, body, err := s.try(method, path, headers...)
	must(s.t, err)
	return resp, body
}

func (s *site) try(method, path string, headers ...string) (*http.Response, []byte, error) {
	req, err := http.NewRequest(method, s.srv.URL+path, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.srv.Client().Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// want checks that an object comes whole and right.
func (s *site) want(path string, data []byte) {
	s.t.Helper()
	resp, body := s.get(urlOf(path, data))
	if resp.StatusCode != http.StatusOK || !bytes.Equal(body, data) {
		s.t.Errorf("GET %s: status %d, %d bytes, want %d of the right ones", path, resp.StatusCode, len(body), len(data))
	}
}

// timestamp is the version served.
func (s *site) timestamp() int64 {
	s.t.Helper()
	if v := s.m.Status().View; v != nil {
		return v.Timestamp
	}
	return 0
}

// files lists what lies below a directory of the cache.
func (s *site) files(sub string) []string {
	s.t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(s.cfg.Dir, sub), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(s.cfg.Dir, p)
			out = append(out, rel)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	return out
}

// clientOf is a TUF client that reads from the mirror over HTTP.
func (s *site) client() *tuf.Client {
	s.t.Helper()
	u, err := upstream.NewHTTP(s.srv.URL)
	must(s.t, err)
	c, err := tuf.Open(tuf.Config{Root: s.root, Fetcher: u})
	must(s.t, err)
	return c
}

// noLeak fails the test if goroutines are left over after it.
func noLeak(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for runtime.NumGoroutine() > before {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
				return
			}
			http.DefaultTransport.(*http.Transport).CloseIdleConnections()
			time.Sleep(5 * time.Millisecond)
		}
	})
}

func contains(list []string, part string) bool {
	for _, s := range list {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

// record asks a handler without a connection.
func record(h http.Handler, method, path string, headers ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}
