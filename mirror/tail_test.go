package mirror_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// tap lets the bytes of objects out as far as it is opened.
type tap struct {
	mu      sync.Mutex
	open    int64         // guarded by mu
	changed chan struct{} // guarded by mu; closed when open changes
}

func newTap() *tap { return &tap{changed: make(chan struct{})} }

const fully = 1 << 62

// to opens the tap up to byte n of each object.
func (t *tap) to(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = n
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *tap) opened() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open
}

// answer is the right one, at the pace of the tap. Block lists flow freely.
func (t *tap) answer(w http.ResponseWriter, r *http.Request, data []byte) {
	if strings.HasSuffix(r.URL.Path, ".blocks") {
		honest(w, r, data)
		return
	}
	pos := int64(offsetOf(r))
	w.Header().Set("Content-Length", fmt.Sprint(int64(len(data))-pos))
	if pos > 0 {
		w.Header().Set("Content-Range", rightRange(int(pos), len(data)))
		w.WriteHeader(http.StatusPartialContent)
	}
	flush(w)
	for pos < int64(len(data)) {
		t.mu.Lock()
		open, changed := min(t.open, int64(len(data))), t.changed
		t.mu.Unlock()
		if open > pos {
			if _, err := w.Write(data[pos:open]); err != nil {
				return
			}
			flush(w)
			pos = open
			continue
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// written waits until the mirror has n bytes of an object.
func (b *edge) written(t *testing.T, i *item, n int64) {
	t.Helper()
	until(t, fmt.Sprintf("%d bytes of %s at the mirror", n, i.path), func() bool {
		for _, p := range b.m.Status().Progress {
			if p.Object == i.object() {
				return p.Bytes >= n
			}
		}
		return false
	})
}

// released is how much of an object readers may have when so many bytes of it
// have come.
func (d *depot) released(i *item, come int64) int64 {
	switch {
	case come >= i.size():
		return i.size()
	case i == d.listed: // whole blocks; never the last one
		return min(come, i.size()-1) / layout.BlockSize * layout.BlockSize
	}
	return min(come, max(i.size()-unverified, 0))
}

// TestReadersFollowTheFill: they get what is verified while the rest has not
// been sent yet, and nothing else.
func TestReadersFollowTheFill(t *testing.T) {
	d := newDepot(t)
	for _, i := range d.items() {
		t.Run(i.path, func(t *testing.T) {
			noLeak(t)
			o, tp := newOrigin(t, d), newTap()
			o.on(tp.answer)
			b := newEdge(t, d, nil, up(t, o.URL, upstream.Limits{}))

			var got atomic.Int64
			done := make(chan error, 1)
			go func() {
				done <- func() error {
					resp, err := b.srv.Client().Get(b.srv.URL + i.url())
					if err != nil {
						return err
					}
					defer resp.Body.Close()
					buf := make([]byte, 100_000)
					for {
						n, err := resp.Body.Read(buf)
						pos := got.Load()
						if !bytes.Equal(buf[:n], i.data[pos:pos+int64(n)]) {
							return fmt.Errorf("wrong bytes after %d", pos)
						}
						pos = got.Add(int64(n))
						if may := d.released(i, tp.opened()); pos > may {
							return fmt.Errorf("%d bytes where %d may be seen", pos, may)
						}
						if err == io.EOF {
							return nil
						} else if err != nil {
							return err
						}
					}
				}()
			}()
			for _, n := range []int64{
				0, 100, layout.BlockSize - 1, layout.BlockSize, layout.BlockSize + 1, 2*layout.BlockSize + 5, i.size() - unverified - 1, i.size() - unverified + 1, i.size() - 1,
			} {
				if n < tp.opened() || n >= i.size() {
					continue
				}
				tp.to(n)
				if n > 0 {
					b.written(t, i, n)
				}
				until(t, fmt.Sprintf("what may be seen of %d bytes", n), func() bool {
					select {
					case err := <-done:
						t.Fatalf("ended after %d bytes: %v", got.Load(), err)
					default:
					}
					return got.Load() == d.released(i, n)
				})
			}
			tp.to(i.size())
			if err := <-done; err != nil || got.Load() != i.size() {
				t.Errorf("%d bytes, %v", got.Load(), err)
			}
			if n := len(o.requests(i.object())); n != 1 {
				t.Errorf("%d transfers", n)
			}
		})
	}
}

// part is one of the ranges of an answer.
type part struct{ contentRange, body string }

// parts takes an answer apart, as RFC 9110 §15.3.7 has it.
func parts(resp *http.Response) ([]part, error) {
	kind, params, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "multipart/byteranges" {
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.Request.Method == http.MethodGet && int64(len(body)) != resp.ContentLength {
			err = fmt.Errorf("%d bytes where Content-Length says %d", len(body), resp.ContentLength)
		}
		return []part{{resp.Header.Get("Content-Range"), string(body)}}, err
	}
	var all []part
	for r := multipart.NewReader(resp.Body, params["boundary"]); ; {
		p, err := r.NextPart()
		if err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(p)
		if err != nil {
			return nil, err
		}
		all = append(all, part{p.Header.Get("Content-Range"), string(body)})
	}
}

// TestRangesWhileFilling: every request for a part gets what a plain file server
// would give of the whole object: at once if that part is there, else as soon
// as it is. Without a block list what is there is not verified: the last byte of
// a part waits until the whole is, so that no wrong part is ever complete.
func TestRangesWhileFilling(t *testing.T) {
	d := newDepot(t)
	const come = layout.BlockSize + 12345
	for _, i := range []*item{d.listed, d.plain} {
		t.Run(i.path, func(t *testing.T) {
			noLeak(t)
			there, size := d.released(i, come), i.size()
			etag := `"` + hashOf(i.data) + `"`
			cases := []struct {
				name   string
				method string
				header []string
				waits  bool // it needs bytes that have not come
			}{
				{"first byte", "GET", []string{"Range", "bytes=0-0"}, false},
				{"within", "GET", []string{"Range", "bytes=1000-99999"}, false},
				{"up to what is there", "GET", []string{"Range", fmt.Sprintf("bytes=0-%d", there-1)}, false},
				{"the last byte that is there", "GET", []string{"Range", fmt.Sprintf("bytes=%d-%d", there-1, there-1)}, false},
				{"several within", "GET", []string{"Range", "bytes=0-9,500-599,100000-200000"}, false},
				{"backwards within", "GET", []string{"Range", "bytes=100000-200000,0-9"}, false},
				{"right If-Range, within", "GET", []string{"Range", "bytes=5-9", "If-Range", etag}, false},
				{"one byte beyond", "GET", []string{"Range", fmt.Sprintf("bytes=%d-%d", there, there)}, true},
				{"across", "GET", []string{"Range", fmt.Sprintf("bytes=%d-%d", there-100, there+100)}, true},
				{"from the start across", "GET", []string{"Range", fmt.Sprintf("bytes=0-%d", there)}, true},
				{"from within to the end", "GET", []string{"Range", "bytes=100-"}, true},
				{"beyond", "GET", []string{"Range", fmt.Sprintf("bytes=%d-%d", size-20_000, size-10_001)}, true},
				{"suffix", "GET", []string{"Range", "bytes=-5000"}, true},
				{"suffix of more than there is", "GET", []string{"Range", "bytes=-999999999"}, true},
				{"several, some beyond", "GET", []string{"Range", fmt.Sprintf("bytes=0-9,%d-%d,-5", there-5, there+5)}, true},
				{"end beyond the end", "GET", []string{"Range", fmt.Sprintf("bytes=%d-99999999999", size-1)}, true},
				{"wrong If-Range", "GET", []string{"Range", "bytes=5-9", "If-Range", `"x"`}, true},
				{"weak If-Range", "GET", []string{"Range", "bytes=5-9", "If-Range", "W/" + etag}, true},
				{"no range", "GET", nil, true},
				{"other unit", "GET", []string{"Range", "lines=0-9"}, false},
				{"after the end", "GET", []string{"Range", fmt.Sprintf("bytes=%d-", size)}, false},
				{"backwards", "GET", []string{"Range", "bytes=9-5"}, false},
				{"head", "HEAD", nil, false},
				{"head of a part", "HEAD", []string{"Range", "bytes=-100"}, false},
				{"not modified", "GET", []string{"If-None-Match", etag}, false},
				{"head, not modified", "HEAD", []string{"If-None-Match", "*"}, false},
			}
			o, tp := newOrigin(t, d), newTap()
			o.on(tp.answer)
			b := newEdge(t, d, nil, up(t, o.URL, upstream.Limits{}))
			plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Etag", etag)
				http.ServeContent(w, r, i.path, time.Time{}, bytes.NewReader(i.data))
			}))
			defer plain.Close()
			ask := func(base, method string, header []string) (*http.Response, []part, error) {
				req, err := http.NewRequest(method, base+i.url(), nil)
				if err != nil {
					return nil, nil, err
				}
				for h := 0; h < len(header); h += 2 {
					req.Header.Set(header[h], header[h+1])
				}
				tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
				resp, err := (&http.Client{Transport: tr}).Do(req)
				if err != nil {
					return nil, nil, err
				}
				defer resp.Body.Close()
				got, err := parts(resp)
				return resp, got, err
			}
			compare := func(name, method string, header []string) {
				resp, got, err := ask(b.srv.URL, method, header)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				ref, want, err := ask(plain.URL, method, header)
				must(t, err)
				if resp.StatusCode != ref.StatusCode || resp.ContentLength != ref.ContentLength && len(want) == 1 || resp.Header.Get("Content-Range") != ref.Header.Get("Content-Range") {
					t.Errorf("%s: status %d of %d bytes, Content-Range %q; want %d of %d, %q", name,
						resp.StatusCode, resp.ContentLength, resp.Header.Get("Content-Range"), ref.StatusCode, ref.ContentLength, ref.Header.Get("Content-Range"))
				}
				if len(got) != len(want) {
					t.Errorf("%s: %d parts, want %d", name, len(got), len(want))
					return
				}
				for n := range want {
					if got[n] != want[n] && resp.StatusCode < 400 {
						t.Errorf("%s: part %d is %q of %d bytes, want %q of %d", name, n, got[n].contentRange, len(got[n].body), want[n].contentRange, len(want[n].body))
					}
				}
			}
			var wg sync.WaitGroup
			wg.Go(func() { compare("the first to ask", "GET", nil) })
			tp.to(come)
			b.written(t, i, come)
			if i == d.plain {
				req, err := http.NewRequest("GET", b.srv.URL+i.url(), nil)
				must(t, err)
				req.Header.Set("Range", "bytes=1000-99999")
				resp, err := b.srv.Client().Do(req)
				must(t, err)
				defer resp.Body.Close()
				got := make([]byte, 98_999)
				if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, i.data[1000:99_999]) {
					t.Errorf("all but the last byte of a part that is there: %v", err)
				}
			}
			for _, c := range cases {
				part := len(c.header) > 0 && strings.HasPrefix(c.header[1], "bytes=") && c.method == "GET" && c.name != "after the end" && c.name != "backwards"
				if c.waits || c.name == "other unit" || part && i == d.plain {
					wg.Go(func() { compare(c.name, c.method, c.header) })
				} else { // while the tap is not opened any further
					compare(c.name, c.method, c.header)
				}
			}
			tp.to(fully)
			wg.Wait()
			if n := len(o.requests(i.object())); n != 1 {
				t.Errorf("%d transfers", n)
			}
			for _, c := range cases { // and the same again of the cached object
				compare(c.name+", cached", c.method, c.header)
			}
		})
	}
}

// TestReadersOfAllSpeeds: fifty who read at once, late, slowly, in parts, or go
// away in the middle; the fill waits for none of them.
func TestReadersOfAllSpeeds(t *testing.T) {
	d := newDepot(t)
	for _, i := range []*item{d.listed, d.plain} {
		t.Run(i.path, func(t *testing.T) {
			noLeak(t)
			o, tp := newOrigin(t, d), newTap()
			o.on(tp.answer)
			b := newEdge(t, d, nil, up(t, o.URL, upstream.Limits{}))
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			filled := make(chan struct{}) // closed when the object is cached
			late := make(chan struct{})   // closed when almost all has come
			var wg sync.WaitGroup
			reader := func(read func(ctx context.Context, leave func(), body io.Reader) error) {
				wg.Go(func() {
					ctx, leave := context.WithCancel(t.Context())
					defer leave()
					req, _ := http.NewRequestWithContext(ctx, http.MethodGet, b.srv.URL+i.url(), nil)
					resp, err := c.Do(req)
					if err == nil {
						err = read(ctx, leave, resp.Body)
						resp.Body.Close()
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			whole := func(r io.Reader, from int64) error {
				data, err := io.ReadAll(r)
				if err == nil && !bytes.Equal(data, i.data[from:]) {
					err = errors.New("other bytes")
				}
				return err
			}
			for n := range 10 {
				reader(func(_ context.Context, _ func(), body io.Reader) error { return whole(body, 0) })
				reader(func(_ context.Context, _ func(), body io.Reader) error { // in small pieces
					return whole(&pieces{body, rand.New(rand.NewPCG(1, uint64(n)))}, 0)
				})
				reader(func(_ context.Context, _ func(), body io.Reader) error { // not before the fill is over
					if _, err := io.CopyN(io.Discard, body, 10); err != nil {
						return err
					}
					<-filled
					return whole(body, 10)
				})
				reader(func(_ context.Context, leave func(), body io.Reader) error { // goes
					_, err := io.CopyN(io.Discard, body, int64(1+n*20_000))
					leave()
					return err
				})
				wg.Go(func() { // comes late
					<-late
					resp, err := c.Get(b.srv.URL + i.url())
					if err == nil {
						err = whole(resp.Body, 0)
						resp.Body.Close()
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			tp.to(layout.BlockSize)
			b.written(t, i, layout.BlockSize)
			tp.to(i.size() - 1)
			b.written(t, i, i.size()-1)
			close(late)
			tp.to(fully)
			until(t, "the object in the cache", func() bool { return b.m.Status().Fills.Done > int64(b2i(i == d.listed)) })
			close(filled)
			wg.Wait()
			if n := len(o.requests(i.object())); n != 1 {
				t.Errorf("%d transfers", n)
			}
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// pieces reads a few bytes at a time.
type pieces struct {
	r   io.Reader
	rng *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), 1+p.rng.IntN(5000))]) }

// TestWrongEndIsNeverSent: an object without a block list turns out wrong at its
// last byte, when all readers have nearly all of it. None gets the end, and
// all see that it was broken off.
func TestWrongEndIsNeverSent(t *testing.T) {
	d := newDepot(t)
	for _, proto := range []int{1, 2} {
		t.Run(fmt.Sprintf("HTTP %d", proto), func(t *testing.T) {
			noLeak(t)
			o, tp := newOrigin(t, d), newTap()
			o.on(func(w http.ResponseWriter, r *http.Request, data []byte) {
				data = bytes.Clone(data)
				data[len(data)-1] ^= 1
				tp.answer(w, r, data)
			})
			b := newEdge(t, d, nil, up(t, o.URL, upstream.Limits{}))
			srv := httptest.NewUnstartedServer(b.m)
			srv.EnableHTTP2 = proto == 2
			srv.StartTLS()
			defer srv.Close()
			srv.Client().Transport.(*http.Transport).TLSClientConfig.MinVersion = tls.VersionTLS12

			i := d.plain
			var wg sync.WaitGroup
			var ready atomic.Int64
			const readers = 50
			for range readers {
				wg.Go(func() {
					resp, err := srv.Client().Get(srv.URL + i.url())
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					if resp.ProtoMajor != proto || resp.StatusCode != 200 || resp.ContentLength != i.size() {
						t.Errorf("%s, status %d, %d bytes", resp.Proto, resp.StatusCode, resp.ContentLength)
					}
					n, err := io.CopyN(io.Discard, resp.Body, i.size()-unverified)
					if err != nil {
						t.Errorf("after %d bytes: %v", n, err)
					}
					ready.Add(1)
					n, err = io.Copy(io.Discard, resp.Body)
					switch {
					case n != 0:
						t.Errorf("%d bytes of the end", n)
					case err == nil:
						t.Error("ended as if it were whole")
					case proto == 1 && !errors.Is(err, io.ErrUnexpectedEOF), proto == 2 && !strings.Contains(err.Error(), "stream error"):
						t.Errorf("ended with %v", err)
					}
				})
			}
			tp.to(i.size() - 1)
			until(t, "all readers at what is verified last", func() bool { return ready.Load() == readers })
			tp.to(fully)
			wg.Wait()
			b.stop()
			clean(t, b.cfg.Dir)
			if files := b.files("cas/sha256"); len(files) != 0 {
				t.Errorf("left: %v", files)
			}
		})
	}
}

// TestStopInTheMiddle: a mirror that is stopped keeps what it has, and the next
// one asks for the rest. Readers of the first are broken off.
func TestStopInTheMiddle(t *testing.T) {
	d := newDepot(t)
	for _, i := range []*item{d.listed, d.plain} {
		t.Run(i.path, func(t *testing.T) {
			noLeak(t)
			o, tp := newOrigin(t, d), newTap()
			o.on(tp.answer)
			b := newEdge(t, d, nil, up(t, o.URL, upstream.Limits{}))
			come := i.size() * 3 / 4
			tp.to(come)
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					// Who had no byte yet when it closed is told so.
					if resp, body, err := b.try("GET", i.url()); err == nil && resp.StatusCode != 503 {
						t.Errorf("status %d, %d bytes, no error", resp.StatusCode, len(body))
					}
				})
			}
			b.written(t, i, come)
			must(t, b.m.Close())
			wg.Wait()
			b.srv.Close()
			b.m = nil
			tp.to(fully)
			b.start()
			b.want(i.path, i.data)
			asked := o.requests(i.object())
			if len(asked) != 2 || asked[0] != "" || asked[1] != fmt.Sprintf("bytes=%d-", come) {
				t.Errorf("upstream was asked for %q", asked)
			}
			if extra := o.sent.Load() - i.size(); extra > layout.BlockListLen(i.size())+i.size()/100 {
				t.Errorf("%d bytes more than the object has", extra)
			}
			b.stop()
			clean(t, b.cfg.Dir)
		})
	}
}

// TestUpstreamsTakeTurns: each sends a part and breaks off; the next goes on.
func TestUpstreamsTakeTurns(t *testing.T) {
	d := newDepot(t)
	var ups []upstream.Upstream
	var origins []*origin
	for range 3 {
		o := newOrigin(t, d)
		o.on(func(w http.ResponseWriter, r *http.Request, data []byte) {
			upTo(func(size int) int { return min(offsetOf(r)+300_000, size) }, closes)(w, r, data)
		})
		ups, origins = append(ups, up(t, o.URL, upstream.Limits{})), append(origins, o)
	}
	b := newEdge(t, d, func(*mirror.Config) {}, ups...)
	for _, p := range crowd(b.srv.URL, 10, 1, d.items()...) {
		if !p.done || p.lied != nil {
			t.Errorf("%s: %+v", p.i.path, p)
		}
	}
	for _, i := range d.items() {
		var all []string
		for _, o := range origins {
			all = append(all, o.requests(i.object())...)
		}
		want := (len(i.data) + 299_999) / 300_000
		if len(all) != want {
			t.Errorf("%s: %d requests, want %d: %q", i.path, len(all), want, all)
		}
	}
}
