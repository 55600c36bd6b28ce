package cmd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// gatedOrigin serves a repository from memory, objects only as far as a test lets
// it.
type gatedOrigin struct {
	files map[string][]byte // by path in the URL
	sent  atomic.Int64      // bytes of objects

	mu      sync.Mutex
	open    int64               // guarded by mu: how many bytes of each object may be sent
	changed chan struct{}       // guarded by mu: closed when open changes
	asked   map[string][]string // guarded by mu: by path, the Range of each request
}

// object is a target in a gatedOrigin.
type object struct {
	path string // in the URL
	data []byte
}

// newGatedOrigin has a target with a block list and one without.
func newGatedOrigin(t *testing.T, size int) (o *gatedOrigin, root []byte, listed, plain object) {
	t.Helper()
	r := tuftest.New()
	r.Delegate("targets", tuftest.Delegation{Role: "product-app", Paths: []string{"patches/app/*/*/*"}, Terminating: true})
	o = &gatedOrigin{files: map[string][]byte{}, changed: make(chan struct{}), asked: map[string][]string{}}
	add := func(path string, data []byte) object {
		r.AddArtifact("product-app", path, data)
		sum := sha256.Sum256(data)
		name := "/" + layout.TargetObject(path, hex.EncodeToString(sum[:]))
		o.files[name] = data
		return object{name, data}
	}
	random := func(seed string) []byte {
		data := make([]byte, size)
		_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(data)
		return data
	}
	const path = "patches/app/1/any/listed.msi"
	listed = add(path, random("listed"))
	var blocks []byte
	for rest := listed.data; len(rest) > 0; {
		n := min(len(rest), layout.BlockSize)
		sum := sha256.Sum256(rest[:n])
		blocks, rest = append(blocks, sum[:]...), rest[n:]
	}
	add(layout.BlocksPath(path), blocks)
	plain = add("patches/app/1/any/plain.msi", random("plain"))
	r.PublishAll()
	for role, versions := range r.Published {
		for n, data := range versions {
			o.files["/"+layout.MetadataObject(role, int64(n+1))] = data
		}
	}
	o.files["/"+layout.TimestampObject] = r.Latest(layout.RoleTimestamp)
	return o, r.Published[layout.RoleRoot][0], listed, plain
}

func (o *gatedOrigin) to(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open = n
	close(o.changed)
	o.changed = make(chan struct{})
}

// forget begins to count anew.
func (o *gatedOrigin) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.asked)
	o.sent.Store(0)
}

func (o *gatedOrigin) requests(path string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.asked[path]...)
}

func (o *gatedOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	data, ok := o.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if !strings.HasPrefix(r.URL.Path, "/targets/") {
		_, _ = w.Write(data)
		return
	}
	o.mu.Lock()
	o.asked[r.URL.Path] = append(o.asked[r.URL.Path], r.Header.Get("Range"))
	o.mu.Unlock()
	body := &gated{o: o, ctx: r.Context(), Reader: bytes.NewReader(data), free: len(data) < layout.BlockSize}
	http.ServeContent(w, r, "", time.Time{}, body)
}

// gated reads an object as far as its origin lets it.
type gated struct {
	*bytes.Reader
	o    *gatedOrigin
	ctx  context.Context
	free bool
}

func (g *gated) Read(p []byte) (int, error) {
	pos := g.Size() - int64(g.Len())
	for !g.free {
		g.o.mu.Lock()
		open, changed := min(g.o.open, g.Size()), g.o.changed
		g.o.mu.Unlock()
		if open > pos {
			p = p[:min(int64(len(p)), open-pos)]
			break
		}
		if pos == g.Size() {
			break
		}
		select {
		case <-changed:
		case <-g.ctx.Done():
			return 0, g.ctx.Err()
		}
	}
	n, err := g.Reader.Read(p)
	g.o.sent.Add(int64(n))
	return n, err
}

// killable is a running patchkeep-mirror.
type killable struct {
	url  string
	kill func() // with SIGKILL, and waits for it
}

var servingAt = regexp.MustCompile(`"url": ?"(http://[^"]+)"`)

func startKillable(t *testing.T, program, upstream, root, dir string) *killable {
	t.Helper()
	cmd := exec.Command(program, "serve", "--json", "--upstream", upstream, "--root", root, "--cache", dir, "--listen", "127.0.0.1:0", "--min-free", "0")
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	p := &killable{kill: func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			out.Close()
		})
	}}
	t.Cleanup(p.kill)
	p.eventually(t, "the mirror's address", func() bool {
		log, _ := os.ReadFile(out.Name())
		if m := servingAt.FindSubmatch(log); m != nil {
			p.url = string(m[1])
		}
		return p.url != ""
	})
	p.eventually(t, "a view", func() bool { return p.status().View != nil })
	return p
}

func (p *killable) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (p *killable) status() (s mirror.Status) {
	resp, err := http.Get(p.url + "/readyz")
	if err != nil {
		return s
	}
	defer resp.Body.Close()
	_ = json.NewDecoder(resp.Body).Decode(&s)
	return s
}

// bytes is how much of an object under way the mirror has.
func (p *killable) bytes(path string) int64 {
	for _, f := range p.status().Progress {
		if "/"+f.Object == path {
			return f.Bytes
		}
	}
	return -1
}

// TestMirrorKilledWhileFilling: kill -9 at random moments. The next process asks
// for the rest alone; who read from the killed one notices, and whoever asks
// the next one gets the right bytes.
func TestMirrorKilledWhileFilling(t *testing.T) {
	bin := t.TempDir()
	program := filepath.Join(bin, "patchkeep-mirror")
	if out, err := exec.Command("go", "build", "-o", program, "./patchkeep-mirror").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	const size = 24<<20 + 4321
	o, root, listed, plain := newGatedOrigin(t, size)
	rootFile := filepath.Join(bin, "root.json")
	if err := os.WriteFile(rootFile, root, 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(o)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })

	seed := time.Now().UnixNano()
	rng := rand.New(rand.NewPCG(1, uint64(seed)))
	for name, obj := range map[string]object{"with a block list": listed, "without": plain} {
		t.Run(name, func(t *testing.T) {
			t.Logf("seed %d", seed)
			dir := t.TempDir()
			o.forget()
			const kills = 4
			var at int64 // where the killed ones were
			for range kills {
				m := startKillable(t, program, srv.URL, rootFile, dir)
				at += 1 + rng.Int64N((size-at)/2)
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						if n, whole, err := download(m.url, obj); whole || err != nil {
							t.Errorf("a reader of the killed mirror: %d bytes, whole: %v, %v", n, whole, err)
						}
					})
				}
				m.eventually(t, "a fill", func() bool { return m.bytes(obj.path) >= 0 })
				o.to(at)
				m.eventually(t, fmt.Sprintf("%d bytes", at), func() bool { return m.bytes(obj.path) >= at })
				m.kill()
				wg.Wait()
			}
			m := startKillable(t, program, srv.URL, rootFile, dir)
			o.to(size)
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if n, whole, err := download(m.url, obj); !whole || err != nil {
						t.Errorf("%d bytes, whole: %v, %v", n, whole, err)
					}
				})
			}
			wg.Wait()
			asked := o.requests(obj.path)
			if len(asked) != kills+1 || asked[0] != "" || strings.Count(strings.Join(asked, " "), "bytes=") != kills {
				t.Errorf("upstream was asked for %q", asked)
			}
			t.Logf("upstream was asked for %q and sent %d bytes for %d", asked, o.sent.Load(), size)
			// Nothing was lost but what follows from a block not yet whole.
			if n := o.sent.Load(); n > size+size/100 {
				t.Errorf("%d bytes crossed the line for %d", n, size)
			}
			m.kill()
			if _, err := cache.Check(t.Context(), dir, func(file string, err error) { t.Errorf("%s: %v", file, err) }); err != nil {
				t.Error(err)
			}
			o.to(0)
		})
	}
}

// download reports whether what came looked complete. A complete answer that
// is wrong is an error.
func download(base string, obj object) (n int64, whole bool, err error) {
	resp, err := http.Get(base + obj.path)
	if err != nil {
		return 0, false, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, false, nil
	}
	h := sha256.New()
	n, err = io.Copy(h, resp.Body)
	if err != nil {
		return n, false, nil
	}
	want := sha256.Sum256(obj.data)
	if n != resp.ContentLength || !bytes.Equal(h.Sum(nil), want[:]) {
		return n, true, errors.New("complete, and wrong")
	}
	return n, true, nil
}
