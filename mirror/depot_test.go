package mirror_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// TestMain has the certificate of httptest's servers trusted, so that an
// upstream over https can be tried.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		srv := httptest.NewTLSServer(nil)
		cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
		srv.Close()
		dir, err := os.MkdirTemp("", "mirror-test")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		file := filepath.Join(dir, "ca.pem")
		if err := os.WriteFile(file, cert, 0o600); err != nil {
			panic(err)
		}
		if err := os.Setenv("SSL_CERT_FILE", file); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

// item is a target of a depot.
type item struct {
	path, sum string
	data      []byte
}

func newItem(path string, data []byte) *item { return &item{path, hashOf(data), data} }

func (i *item) object() string { return layout.TargetObject(i.path, i.sum) }
func (i *item) url() string    { return "/" + layout.EscapePath(i.object()) }
func (i *item) size() int64    { return int64(len(i.data)) }

// noise is n bytes, quickly made.
func noise(seed string, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(out)
	return out
}

// blockListOf is the block list of some data.
func blockListOf(data []byte) []byte {
	var list []byte
	for len(data) > 0 {
		n := min(len(data), layout.BlockSize)
		sum := sha256.Sum256(data[:n])
		list, data = append(list, sum[:]...), data[n:]
	}
	return list
}

// unverified is what is held back of an object without a block list.
const unverified = 256 << 10

// depot is a repository with an object of each kind: with a block list, without
// one, and small.
type depot struct {
	dir                  string
	files                sync.Map // object to []byte, for origins
	repo                 *tuftest.Repo
	root                 []byte
	listed, plain, small *item
}

func newDepot(t testing.TB) *depot {
	t.Helper()
	d := &depot{
		dir: t.TempDir(), repo: tuftest.New(),
		listed: newItem("patches/app/2.0/any/listed.msi", noise("listed", 4*layout.BlockSize+200_000)),
		plain:  newItem("patches/app/2.0/any/plain.msi", noise("plain", 5*layout.BlockSize/4+77)),
		small:  newItem("patches/app/2.0/any/small.msi", noise("small", 100_000)),
	}
	d.repo.Delegate("targets", tuftest.Delegation{Role: "product-app", Paths: []string{"patches/app/*/*/*"}, Terminating: true})
	d.add(d.items()...)
	d.repo.PublishAll()
	d.root = d.repo.Published[layout.RoleRoot][0]
	export(t, d.repo, d.dir)
	return d
}

func (d *depot) items() []*item { return []*item{d.listed, d.plain, d.small} }

// add lists items, and a block list where it is due. It is not yet published.
func (d *depot) add(items ...*item) {
	for _, i := range items {
		d.files.Store(i.object(), i.data)
		d.repo.AddArtifact("product-app", i.path, i.data)
		if i == d.listed {
			d.addBlocks(i)
		}
	}
}

func (d *depot) addBlocks(i *item) {
	list := newItem(layout.BlocksPath(i.path), blockListOf(i.data))
	d.files.Store(list.object(), list.data)
	d.repo.AddArtifact("product-app", list.path, list.data)
}

func (d *depot) publish(t testing.TB) {
	t.Helper()
	d.repo.PublishAll()
	export(t, d.repo, d.dir)
}

// reply is how an origin answers a request for an object of which it has data.
type reply func(w http.ResponseWriter, r *http.Request, data []byte)

// origin is a real HTTP server of a depot, which a test can have answer anything.
type origin struct {
	*httptest.Server
	d     *depot
	files http.Handler
	sent  atomic.Int64 // bytes of objects

	mu     sync.Mutex
	answer reply               // guarded by mu; nil: as it should be
	asked  map[string][]string // guarded by mu: object to the Range of each request
	now    int                 // guarded by mu: requests for objects under way
	most   int                 // guarded by mu: at once
}

func newOrigin(t testing.TB, d *depot) *origin {
	t.Helper()
	o := unstarted(d)
	o.Start()
	t.Cleanup(o.stop)
	return o
}

func unstarted(d *depot) *origin {
	o := &origin{d: d, files: http.FileServerFS(os.DirFS(d.dir)), asked: map[string][]string{}}
	o.Server = httptest.NewUnstartedServer(o)
	return o
}

func (o *origin) stop() {
	o.CloseClientConnections()
	o.Close()
}

func (o *origin) on(a reply) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = a
}

// mended reports whether it answers as it should.
func (o *origin) mended() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.answer == nil
}

// requests returns the Range of each request for an object.
func (o *origin) requests(object string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.asked[object]...)
}

// total counts requests for objects.
func (o *origin) total() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.asked {
		n += len(r)
	}
	return n
}

func (o *origin) atOnce() (now, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.now, o.most
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	object := strings.TrimPrefix(r.URL.Path, "/")
	if !strings.HasPrefix(object, "targets/") {
		o.files.ServeHTTP(w, r)
		return
	}
	o.mu.Lock()
	o.asked[object] = append(o.asked[object], r.Header.Get("Range"))
	o.now++
	o.most = max(o.most, o.now)
	a := o.answer
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.now--
		o.mu.Unlock()
	}()
	data, ok := o.d.files.Load(object)
	if !ok {
		http.NotFound(w, r)
		return
	}
	if a == nil {
		a = honest
	}
	a(&counted{w, &o.sent}, r, data.([]byte))
}

// honest answers as it should be.
func honest(w http.ResponseWriter, r *http.Request, data []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// counted counts the bytes of a body.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// up is the upstream at a URL.
func up(t testing.TB, base string, lim upstream.Limits) upstream.Upstream {
	t.Helper()
	u, err := upstream.NewHTTP(base)
	must(t, err)
	return upstream.Guard(u, lim)
}

// impatient is an upstream to which little time is given now and then, so that a
// busy machine is not taken for a bad upstream.
type impatient struct {
	upstream.Upstream
	limits func(object string) upstream.Limits // "": metadata
}

func (u impatient) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	return upstream.Guard(u.Upstream, u.limits("")).FetchMetadata(ctx, name, max)
}

func (u impatient) OpenTarget(ctx context.Context, object string, offset int64) (io.ReadCloser, int64, error) {
	return upstream.Guard(u.Upstream, u.limits(object)).OpenTarget(ctx, object, offset)
}

// edge is a mirror of a depot behind real servers.
type edge struct {
	*site
	d *depot
}

func newEdge(t testing.TB, d *depot, change func(*mirror.Config), ups ...upstream.Upstream) *edge {
	t.Helper()
	s := &site{t: t, repo: d.repo, root: d.root, dir: d.dir}
	s.cfg = mirror.Config{
		Dir: t.TempDir(), Root: d.root, Upstreams: ups,
		FailFor: time.Nanosecond, Backoff: time.Microsecond, Rest: time.Nanosecond, Patience: 100 * time.Millisecond,
		Now: func() time.Time {
			if now := s.now.Load(); now != nil {
				return *now
			}
			return time.Now()
		},
	}
	if change != nil {
		change(&s.cfg)
	}
	s.start()
	must(t, s.m.Refresh(t.Context()))
	t.Cleanup(s.stop)
	return &edge{s, d}
}

// later moves the mirror's clock.
func (b *edge) later(d time.Duration) {
	now := b.cfg.Now().Add(d)
	b.now.Store(&now)
}

// puller is a downloader: it takes a response for whole if it has all the bytes
// that its header announced, goes on by Range after a cut, and begins anew if
// the hash is wrong in the end.
type puller struct {
	i     *item
	tries int  // requests
	dirty int  // answers that carried a wrong byte
	done  bool // it has the whole, and it is right
	lied  error
}

// pull makes up to tries requests.
func (p *puller) pull(c *http.Client, base string, tries int) {
	var have int64 // right bytes
	for p.tries < tries && !p.done && p.lied == nil {
		p.tries++
		got, whole, right, err := p.once(c, base, have)
		switch {
		case err != nil:
			p.lied = err
		case whole && !right:
			p.lied = fmt.Errorf("answer %d was complete, and wrong", p.tries)
		case whole:
			p.done = true
		case !right:
			p.dirty++
			have = 0
		default:
			have += got
		}
	}
}

func (p *puller) once(c *http.Client, base string, from int64) (got int64, whole, right bool, err error) {
	req, err := http.NewRequest(http.MethodGet, base+p.i.url(), nil)
	if err != nil {
		return 0, false, false, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	code, length := http.StatusOK, p.i.size()-from
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		code = http.StatusPartialContent
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, false, true, nil // no answer is no lie
	}
	defer resp.Body.Close()
	if resp.StatusCode != code {
		if resp.StatusCode < 500 || resp.Header.Get("Etag") != "" || resp.Header.Get("Cache-Control") != "no-store" {
			err = fmt.Errorf("status %d, headers %v", resp.StatusCode, resp.Header)
		}
		return 0, false, true, err
	}
	if resp.ContentLength != length {
		return 0, false, false, fmt.Errorf("Content-Length %d where %d bytes are to come", resp.ContentLength, length)
	}
	right = true
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		pos := from + got
		right = right && pos+int64(n) <= p.i.size() && bytes.Equal(buf[:n], p.i.data[pos:pos+int64(n)])
		got += int64(n)
		if err != nil {
			return got, err == io.EOF && got == length, right, nil
		}
	}
}

// crowd has n pullers ask for each item at once.
func crowd(base string, n, tries int, items ...*item) []*puller {
	return mixedCrowd(base, tries, func(*item) int { return n }, items...)
}

// mixedCrowd has as many pullers for each item as n says.
func mixedCrowd(base string, tries int, n func(*item) int, items ...*item) []*puller {
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	var all []*puller
	var wg sync.WaitGroup
	for _, i := range items {
		for range n(i) {
			p := &puller{i: i}
			all = append(all, p)
			wg.Go(func() { p.pull(c, base, tries) })
		}
	}
	wg.Wait()
	return all
}

// clean checks that whatever lies in the cache of a mirror that has ended is
// what it is called.
func clean(t *testing.T, dir string) {
	t.Helper()
	_, err := cache.Check(t.Context(), dir, func(file string, err error) { t.Errorf("%s: %v", file, err) })
	must(t, err)
}
