package cmd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	soakObjects   = 150
	soakLives     = 4   // of the mirror, unless PATCHKEEP_SOAK says how long
	soakDownloads = 150 // in each
	soakClients   = 12
	soakCache     = 48 << 20 // far less than all objects
	soakMemory    = 200 << 20
)

// TestSoak is a long life of a mirror, made short: a cache that is always full,
// upstreams that fail in all ways, clients that come and go, and the mirror
// killed and stopped again and again. What anybody gets whole is right, and at
// the end nothing has leaked and the cache is sound. PATCHKEEP_SOAK=10m makes it
// longer; PATCHKEEP_SOAK_SEED repeats the dice, though not their order.
func TestSoak(t *testing.T) {
	s := newSoak(t)
	var end time.Time
	if v := os.Getenv("PATCHKEEP_SOAK"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("PATCHKEEP_SOAK: %v", err)
		}
		end, s.long = time.Now().Add(d), true
	}
	for life := 0; life < soakLives || time.Now().Before(end); life++ {
		m := s.start()
		if life%2 == 0 { // killed while clients are at it
			at := soakDownloads/2 + s.dice(soakDownloads/3)
			s.load(m, soakDownloads, func(done int) {
				if done == at {
					m.end(syscall.SIGKILL)
				}
			})
		} else {
			s.load(m, soakDownloads, func(int) {})
			m.end(syscall.SIGTERM)
			if m.err != nil {
				t.Errorf("stopped mirror: %v\n%s", m.err, m.log)
			}
		}
		s.sound()
	}
	s.last()
	t.Logf("%d downloads were whole, %d failed, %d were given up by the client", s.whole.Load(), s.failed.Load(), s.left.Load())
	if s.whole.Load() == 0 || s.left.Load() == 0 {
		t.Error("that was no soak")
	}
}

type soakObject struct {
	path string // on a server
	data []byte
}

type soak struct {
	t       *testing.T
	bin     string
	repo    string
	cache   string
	objects []soakObject
	up      []*httptest.Server
	long    bool
	well    atomic.Bool // upstreams do not fail any more

	whole, failed, left atomic.Int64

	mu  sync.Mutex
	rng *rand.Rand // guarded by mu
}

// dice is a number from 0 to n-1.
func (s *soak) dice(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(n)
}

func newSoak(t *testing.T) *soak {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("PATCHKEEP_SOAK_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("PATCHKEEP_SOAK_SEED: %v", err)
		}
	}
	t.Logf("PATCHKEEP_SOAK_SEED=%d", seed)
	s := &soak{t: t, bin: buildPrograms(t), repo: t.TempDir(), cache: t.TempDir(), rng: rand.New(rand.NewPCG(seed, 0))}
	var key [32]byte
	copy(key[:], strconv.FormatUint(seed, 10))
	noise := rand.NewChaCha8(key)
	r := tuftest.New()
	r.Delegate("targets", tuftest.Delegation{Role: "product-app", Paths: []string{"patches/app/*/*/*"}, Terminating: true})
	add := func(target string, data []byte) {
		r.AddArtifact("product-app", target, data)
		sum := sha256.Sum256(data)
		object := layout.TargetObject(target, hex.EncodeToString(sum[:]))
		s.write(object, data)
		s.objects = append(s.objects, soakObject{"/" + layout.EscapePath(object), data})
	}
	for i := range soakObjects {
		f := s.rng.Float64()
		size := int(f * f * f * (8 << 20))
		switch i {
		case 0:
			size = 0
		case 1, 2, 3:
			size = 12 << 20
		}
		data := make([]byte, size)
		noise.Read(data)
		target := fmt.Sprintf("patches/app/1.%d/any/app.bin", i)
		add(target, data)
		if size >= layout.BlockListMin {
			var list []byte
			for rest := data; len(rest) > 0; {
				n := min(len(rest), layout.BlockSize)
				sum := sha256.Sum256(rest[:n])
				list, rest = append(list, sum[:]...), rest[n:]
			}
			add(layout.BlocksPath(target), list)
		}
	}
	r.PublishAll()
	for role, versions := range r.Published {
		for i, data := range versions {
			if role != layout.RoleTimestamp {
				s.write(layout.MetadataObject(role, int64(i+1)), data)
			}
		}
	}
	s.write(layout.TimestampObject, r.Latest(layout.RoleTimestamp))
	for _, worse := range []bool{true, false} {
		srv := httptest.NewUnstartedServer(s.upstream(worse))
		srv.Config.SetKeepAlivesEnabled(false) // connections that the mirror keeps would look like a leak
		srv.Start()
		t.Cleanup(srv.Close)
		s.up = append(s.up, srv)
	}
	return s
}

func (s *soak) write(object string, data []byte) {
	s.t.Helper()
	name := filepath.Join(s.repo, filepath.FromSlash(object))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// upstream serves the repository, and fails in many ways. Only a worse one
// sends wrong bytes: somebody has to have the right ones.
func (s *soak) upstream(worse bool) http.Handler {
	files := http.FileServer(http.Dir(s.repo))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		dice := s.dice(1000)
		switch {
		case s.well.Load() || r.URL.RawQuery != "" || dice >= 500:
			files.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/metadata/"):
			if dice < 50 {
				http.Error(w, "not now", http.StatusServiceUnavailable)
			} else {
				files.ServeHTTP(w, r)
			}
		case dice < 200: // cut
			files.ServeHTTP(&trouble{w, s.dice(4 << 20), func() { panic(http.ErrAbortHandler) }}, r)
		case dice < 250: // stalls for a moment
			files.ServeHTTP(&trouble{w, s.dice(1 << 20), func() { time.Sleep(200 * time.Millisecond) }}, r)
		case dice < 252 && s.long: // for ever, which costs the mirror's patience
			files.ServeHTTP(&trouble{w, s.dice(1 << 20), func() { <-r.Context().Done() }}, r)
		case dice < 300: // redirects
			http.Redirect(w, r, s.up[s.dice(2)].URL+r.URL.Path+"?again", http.StatusFound)
		case dice < 330:
			http.Error(w, "not now", http.StatusBadGateway)
		case dice < 360: // knows no Range
			r.Header.Del("Range")
			files.ServeHTTP(w, r)
		case !worse:
			files.ServeHTTP(w, r)
		case dice < 400: // sends something wrong
			data, err := os.ReadFile(filepath.Join(s.repo, filepath.FromSlash(r.URL.Path)))
			if err != nil {
				http.Error(w, "not found", http.StatusNotFound)
				return
			}
			if len(data) > 0 {
				data[s.dice(len(data))] ^= 1
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		case dice < 420: // is too long
			w.Header().Set("Content-Length", strconv.Itoa(64<<20))
			io.CopyN(w, neverEnding('x'), 64<<20)
		case dice < 440: // and does not say so
			io.CopyN(w, neverEnding('x'), 64<<20)
		case dice < 460: // a page of the hotel
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<h1>Welcome</h1>")
		default:
			http.Error(w, "not found", http.StatusNotFound)
		}
	})
}

type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	if len(p) > 0 {
		p[0] = byte(b)
		for n := 1; n < len(p); n *= 2 {
			copy(p[n:], p[:n])
		}
	}
	return len(p), nil
}

// trouble happens once after some bytes of a body.
type trouble struct {
	http.ResponseWriter
	after int
	what  func()
}

func (w *trouble) Write(p []byte) (int, error) {
	if w.what == nil || len(p) <= w.after {
		w.after -= len(p)
		return w.ResponseWriter.Write(p)
	}
	n, err := w.ResponseWriter.Write(p[:w.after])
	if err != nil {
		return n, err
	}
	w.ResponseWriter.(http.Flusher).Flush()
	what := w.what
	w.what = nil
	what()
	m, err := w.ResponseWriter.Write(p[n:])
	return n + m, err
}

func (s *soak) start() *mirrorProcess {
	s.t.Helper()
	return serveMirror(s.t, s.bin, "--upstream", s.up[0].URL, "--upstream", s.up[1].URL, "--poll", "300ms", "--grace", "5s",
		"--root", filepath.Join(s.repo, "metadata", "1.root.json"), "--cache", s.cache, "--cache-size", strconv.Itoa(soakCache))
}

// load has clients make n requests, and calls progress after each.
func (s *soak) load(m *mirrorProcess, n int, progress func(done int)) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	go func() {
		select {
		case <-m.ended: // nobody is there to ask
			cancel()
		case <-ctx.Done():
		}
	}()
	transport := &http.Transport{MaxIdleConnsPerHost: soakClients, IdleConnTimeout: time.Second}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	var begun, done atomic.Int64
	var wg sync.WaitGroup
	for range soakClients {
		wg.Go(func() {
			for begun.Add(1) <= int64(n) && ctx.Err() == nil {
				s.request(ctx, c, m)
				progress(int(done.Add(1)))
			}
		})
	}
	wg.Wait()
}

// request is one of a client's, of whatever kind.
func (s *soak) request(ctx context.Context, c *http.Client, m *mirrorProcess) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	// Some are asked for often, some hardly ever.
	o := s.objects[min(s.dice(len(s.objects)), s.dice(len(s.objects)))]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url+o.path, nil)
	if err != nil {
		s.t.Error(err)
		return
	}
	from, to := 0, len(o.data)
	leave := -1
	switch kind := s.dice(10); {
	case len(o.data) == 0:
	case kind < 2: // a part
		from = s.dice(len(o.data))
		to = from + 1 + s.dice(len(o.data)-from)
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	case kind == 2: // from there to the end, as one who was cut off
		from = s.dice(len(o.data))
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	case kind < 5: // the client goes
		leave = s.dice(len(o.data))
	}
	resp, err := c.Do(req)
	if err != nil {
		s.failed.Add(1) // also the end of the mirror
		return
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		s.failed.Add(1)
		return
	default:
		s.t.Errorf("%s: status %d", o.path, resp.StatusCode)
		return
	}
	if leave >= 0 {
		io.CopyN(io.Discard, resp.Body, int64(leave))
		s.left.Add(1)
		return
	}
	if part := req.Header.Get("Range") != ""; part != (resp.StatusCode == http.StatusPartialContent) {
		s.t.Errorf("%s: status %d to Range %q", o.path, resp.StatusCode, req.Header.Get("Range"))
		return
	}
	got, err := io.ReadAll(io.LimitReader(resp.Body, int64(len(o.data))+1))
	switch {
	case err != nil:
		s.failed.Add(1)
	case !bytes.Equal(got, o.data[from:to]):
		s.t.Errorf("%s, bytes %d to %d: got %d wrong ones", o.path, from, to, len(got))
	default:
		s.whole.Add(1)
	}
}

// sound checks the cache that a mirror has left.
func (s *soak) sound() {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), filepath.Join(s.bin, "patchkeep-mirror"), "verify", "--cache", s.cache, "--json")
	out, err := cmd.Output()
	var found struct {
		Damaged int
		Files   []any
	}
	if err != nil || json.Unmarshal(out, &found) != nil || found.Damaged > 0 || len(found.Files) > 0 {
		s.t.Errorf("the cache that the mirror left: %v\n%s", err, out)
	}
	var size int64
	err = filepath.WalkDir(filepath.Join(s.cache, "cas"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil || size > soakCache {
		s.t.Errorf("cache of %d bytes, %d at most: %v", size, soakCache, err)
	}
}

// last is a life in which nothing may be left over from the load.
func (s *soak) last() {
	m := s.start()
	level := func() (goroutines float64, files int) {
		http.DefaultClient.CloseIdleConnections()
		return m.metrics(s.t)["go_goroutines"], openFiles(s.t, m.pid)
	}
	var goroutines float64
	files := 0
	for range 10 { // polls, whose connections come and go, belong to it
		g, f := level()
		goroutines, files = max(goroutines, g), max(files, f)
		time.Sleep(100 * time.Millisecond)
	}
	s.load(m, soakDownloads, func(int) {})
	s.well.Store(true)
	s.all(m)
	var g float64
	var f int
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if g, f = level(); g <= goroutines && f <= files {
			break
		}
		if time.Now().After(end) {
			out, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", m.pid)).Output()
			s.t.Errorf("%g goroutines and %d files before the load, %g and %d after:\n%s", goroutines, files, g, f, out)
			break
		}
	}
	if after := m.metrics(s.t); after["patchkeep_mirror_cache_evicted_total"] == 0 {
		s.t.Error("nothing was evicted: the cache was too large for a soak")
	}
	if _, peak := memory(s.t, m.pid); peak > soakMemory {
		s.t.Errorf("the mirror had %d bytes of memory", peak)
	}
	m.end(syscall.SIGTERM)
	if m.err != nil {
		s.t.Errorf("stopped mirror: %v\n%s", m.err, m.log)
	}
	s.sound()
}

// all fetches each object whole. An upstream that was banned for it or rests
// has to come back for some.
func (s *soak) all(m *mirrorProcess) {
	transport := &http.Transport{IdleConnTimeout: time.Second}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	for _, o := range s.objects {
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			resp, err := c.Get(m.url + o.path)
			if err != nil {
				s.t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode == http.StatusOK && bytes.Equal(got, o.data) {
				s.whole.Add(1)
				break
			}
			if time.Now().After(end) {
				s.t.Fatalf("%s: status %d, %d bytes of %d, %v", o.path, resp.StatusCode, len(got), len(o.data), err)
			}
		}
	}
}

// TestMemoryOfLargeObjects: the mirror needs no more for an object of 256 MiB
// than for one of ten MB, while it comes and afterwards.
func TestMemoryOfLargeObjects(t *testing.T) {
	bin := buildPrograms(t)
	peak := func(size int64) int64 {
		repo := filepath.Join(t.TempDir(), "repo")
		o := publish(t, bin, repo, neverEnding(0), size)
		m := serveMirror(t, bin, "--upstream", newLine(t, repo, 0).url, "--root", filepath.Join(repo, "metadata", "1.root.json"), "--cache", t.TempDir())
		for range 2 {
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if _, _, err := o.download(t.Context(), m.addr, time.Now(), false); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		_, peak := memory(t, m.pid)
		m.end(syscall.SIGKILL)
		return peak
	}
	small, large := peak(10_000_000), peak(256<<20)
	t.Logf("%d bytes at most for an object of 10 MB, %d for one of 256 MiB", small, large)
	if large > small+16<<20 {
		t.Errorf("%d bytes of memory for an object of 256 MiB, %d for one of 10 MB", large, small)
	}
}
