package mirror_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// plainOf decodes a body.
func plainOf(t testing.TB, resp *http.Response, body []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(body)
	switch enc := resp.Header.Get("Content-Encoding"); enc {
	case "":
		return body
	case "gzip":
		z, err := gzip.NewReader(r)
		must(t, err)
		r = z
	case "zstd":
		z, err := zstd.NewReader(r)
		must(t, err)
		defer z.Close()
		r = z
	default:
		t.Errorf("Content-Encoding %q", enc)
	}
	out, err := io.ReadAll(r)
	must(t, err)
	return out
}

// TestCodings: what a client gets for what it says it takes.
func TestCodings(t *testing.T) {
	s := newSite(t)
	const large, small = "/metadata/1.product-app.json", "/metadata/timestamp.json"
	if n := len(s.repo.Latest("product-app")); n < 800 {
		t.Fatalf("a role of %d bytes is too small for this", n)
	}
	if n := len(s.repo.Latest("timestamp")); n > 512 {
		t.Fatalf("a timestamp of %d bytes is too large for this", n)
	}
	for _, c := range []struct {
		path, accept, want string // "406": refused
	}{
		{large, "", ""},
		{large, "identity", ""},
		{large, "gzip", "gzip"},
		{large, "GZIP", "gzip"},
		{large, "x-gzip", "gzip"},
		{large, "zstd", "zstd"},
		{large, "gzip, deflate, br, zstd", "zstd"},
		{large, "zstd, gzip", "zstd"},
		{large, "gzip, zstd;q=0.9", "gzip"},
		{large, "gzip;q=0.5, zstd;q=0.501", "zstd"},
		{large, "gzip ; q=0.5 , identity;q=0.4", "gzip"},
		{large, "gzip;q=0.5, identity;q=0.5", "gzip"},
		{large, "gzip;q=0.5, identity", ""},
		{large, "gzip;q=0.001", "gzip"},
		{large, "gzip;q=0", ""},
		{large, "gzip;q=0.000, *", "zstd"},
		{large, "*", "zstd"},
		{large, "*;q=0.5, zstd;q=0", "gzip"},
		{large, "*;q=0", "406"},
		{large, "*;q=0, gzip", "gzip"},
		{large, "*;q=0, identity;q=0.1", ""},
		{large, "br", ""},
		{large, "br, identity;q=0", "406"},
		{large, "identity;q=0", "406"},
		{large, "identity;q=0, gzip;q=0.1", "gzip"},
		{large, "gzip;q=2", ""},
		{large, "gzip;q=1.001", ""},
		{large, "gzip;q=0.1234", ""},
		{large, "gzip;q=-1", ""},
		{large, "gzip;q=", ""},
		{large, "gzip;q=NaN, zstd;q=Inf", ""},
		{large, "gzip;level=9", ""},
		{large, ",,;,;q=1,", ""},
		{large, strings.Repeat("x,", 4000) + "gzip", "gzip"},
		{small, "gzip, zstd", ""},
		{small, "gzip, identity;q=0", "gzip"},
		{small, "*;q=0", "406"},
	} {
		headers := []string{"Accept-Encoding", c.accept}
		if c.accept == "" {
			headers[1] = "identity" // or our client would add one
		}
		rec := record(s.m, "GET", c.path, headers...)
		if c.accept == "" {
			rec = record(s.m, "GET", c.path)
		}
		resp, body := rec.Result(), rec.Body.Bytes()
		head := record(s.m, "HEAD", c.path, headers...).Result()
		name := fmt.Sprintf("%s for %.40q", c.path, c.accept)
		if resp.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: Vary %q", name, resp.Header.Get("Vary"))
		}
		if c.want == "406" {
			if resp.StatusCode != 406 || resp.Header.Get("Etag") != "" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: status %d, %v", name, resp.StatusCode, resp.Header)
			}
			continue
		}
		role := "product-app"
		if c.path == small {
			role = "timestamp"
		}
		want := s.repo.Latest(role)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Encoding") != c.want || !bytes.Equal(plainOf(t, resp, body), want) {
			t.Errorf("%s: status %d, coding %q, want %q", name, resp.StatusCode, resp.Header.Get("Content-Encoding"), c.want)
		}
		if resp.Header.Get("Content-Length") != fmt.Sprint(len(body)) || c.path == large && c.want != "" && len(body) > len(want)*9/10 {
			t.Errorf("%s: %d bytes, Content-Length %q", name, len(body), resp.Header.Get("Content-Length"))
		}
		for _, h := range []string{"Content-Length", "Content-Encoding", "Content-Type", "Etag", "Cache-Control"} {
			if head.Header.Get(h) != resp.Header.Get(h) {
				t.Errorf("HEAD %s: %s %q, GET %q", name, h, head.Header.Get(h), resp.Header.Get(h))
			}
		}
	}
	if rec := record(s.m, "GET", large, "Accept-Encoding", "gzip", "Range", "bytes=0-9"); rec.Code != 200 || rec.Header().Get("Accept-Ranges") != "" {
		t.Errorf("a range of metadata: status %d", rec.Code)
	}
}

// FuzzAcceptEncoding: whatever a client says, it gets the right bytes in a coding
// that it named, or a 406.
func FuzzAcceptEncoding(f *testing.F) {
	s := newSite(f)
	for _, accept := range []string{"", "gzip", "zstd;q=0.5, *;q=0", "identity;q=0", "gzip;q=1.000,,;", "\x00", "*;q=0.0000", "GZIP ;Q=0.1"} {
		f.Add(accept)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		req := httptest.NewRequest("GET", "/metadata/1.product-app.json", nil)
		req.Header["Accept-Encoding"] = []string{accept}
		rec := httptest.NewRecorder()
		s.m.ServeHTTP(rec, req)
		resp := rec.Result()
		enc := resp.Header.Get("Content-Encoding")
		switch said := strings.ToLower(accept); {
		case rec.Code == 406:
			if !strings.Contains(said, "q=0") {
				t.Errorf("%q: refused", accept)
			}
		case rec.Code != 200 || !bytes.Equal(plainOf(t, resp, rec.Body.Bytes()), s.repo.Latest("product-app")):
			t.Errorf("%q: status %d, %d bytes", accept, rec.Code, rec.Body.Len())
		case enc != "" && !strings.Contains(said, enc) && !strings.Contains(said, "*"):
			t.Errorf("%q: %s", accept, enc)
		}
	})
}

// TestTags: each coding has its own strong ETag, and who has the content in any
// of them is not sent it again.
func TestTags(t *testing.T) {
	s := newSite(t)
	const path = "/metadata/1.product-app.json"
	tags := map[string]string{}
	for _, coding := range []string{"identity", "gzip", "zstd"} {
		rec := record(s.m, "GET", path, "Accept-Encoding", coding)
		tag := rec.Header().Get("Etag")
		if tags[tag] != "" || !strings.HasPrefix(tag, `"`) || !strings.HasSuffix(tag, `"`) {
			t.Errorf("%s: ETag %q", coding, tag)
		}
		tags[tag] = coding
	}
	if base := upstream.ETag(s.repo.Latest("product-app")); tags[base] != "identity" || tags[strings.TrimSuffix(base, `"`)+`-zstd"`] != "zstd" {
		t.Errorf("tags %v", tags)
	}
	for tag, has := range tags {
		for _, takes := range []string{"", "identity", "gzip", "zstd, gzip"} {
			for _, header := range []string{tag, "W/" + tag, `"x", ` + tag} {
				rec := record(s.m, "GET", path, "If-None-Match", header, "Accept-Encoding", takes)
				h := rec.Header()
				if rec.Code != 304 || rec.Body.Len() != 0 || h.Get("Etag") != tag || h.Get("Vary") != "Accept-Encoding" ||
					h.Get("Cache-Control") != "public, max-age=31536000, immutable" || h.Get("Content-Encoding") != "" || h.Get("Content-Length") != "" {
					t.Errorf("has %s, takes %q, asks with %s: status %d, %v", has, takes, header, rec.Code, h)
				}
			}
		}
	}
	zstdTag := record(s.m, "HEAD", path, "Accept-Encoding", "zstd").Header().Get("Etag")
	if rec := record(s.m, "GET", path, "If-None-Match", "*", "Accept-Encoding", "zstd"); rec.Code != 304 || rec.Header().Get("Etag") != zstdTag {
		t.Errorf("any: status %d, tag %q", rec.Code, rec.Header().Get("Etag"))
	}
	if rec := record(s.m, "GET", path, "If-None-Match", `"x-gzip"`); rec.Code != 200 {
		t.Errorf("another tag: status %d", rec.Code)
	}
}

// counting is a client's transport that counts requests and what bodies take on
// the wire.
type counting struct {
	http.RoundTripper
	mu       sync.Mutex // guards the rest
	requests int
	bytes    int64
	statuses []int
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	c.bytes += int64(len(body))
	c.statuses = append(c.statuses, resp.StatusCode)
	return resp, err
}

// TestPollOnTheWire: a client that knows all makes two requests, and less than
// 1 KB of bodies comes back; the upstream hears nothing of it.
func TestPollOnTheWire(t *testing.T) {
	s := newSite(t)
	wire := &counting{RoundTripper: s.srv.Client().Transport}
	f := fetch.New(fetch.Options{HTTP: &http.Client{Transport: wire}})
	md := f.Metadata(s.srv.URL + "/metadata")
	c, err := tuf.Open(tuf.Config{Root: s.root, Fetcher: md})
	must(t, err)
	defer c.Close()
	must(t, c.Refresh(t.Context()))
	md.Confirm(c.Bytes(layout.RoleTimestamp))
	wire.requests, wire.bytes, wire.statuses = 0, 0, nil
	asked := s.up.fetches.Load()
	for range 3 {
		must(t, c.Refresh(t.Context()))
	}
	if wire.requests != 6 || wire.bytes > 3*1000 || fmt.Sprint(wire.statuses) != "[404 304 404 304 404 304]" {
		t.Errorf("three polls: %d requests, %d bytes of bodies, statuses %v", wire.requests, wire.bytes, wire.statuses)
	}
	if s.up.fetches.Load() != asked {
		t.Error("a client's poll reached the upstream")
	}
	resp, _ := s.get("/metadata/2.root.json")
	if resp.StatusCode != 404 || resp.Header.Get("Cache-Control") != "public, max-age=1" {
		t.Errorf("next root: status %d, Cache-Control %q", resp.StatusCode, resp.Header.Get("Cache-Control"))
	}
	s.repo.Publish("root")
	s.publish(nil)
	must(t, s.m.Refresh(t.Context()))
	for path, want := range map[string]int{"/metadata/2.root.json": 200, "/metadata/3.root.json": 404} {
		if resp, _ := s.get(path); resp.StatusCode != want {
			t.Errorf("%s after a new root: status %d", path, resp.StatusCode)
		}
	}
}

// TestMirrorPollsForNothing: what a mirror's poll costs its line when there is
// nothing new, and when only the timestamp is.
func TestMirrorPollsForNothing(t *testing.T) {
	origin := newSite(t)
	var up upstream.Upstream
	branch := newSite(t, func(s *site) {
		s.repo, s.root, s.cfg.Root = origin.repo, origin.root, origin.root
		up = httpOf(t, origin.srv.URL)
		s.cfg.Upstreams = []upstream.Upstream{upstream.Guard(up, upstream.Limits{})}
	})
	before := upstream.MetadataBytes(up)
	if whole := len(origin.repo.Latest("product-app")) + len(origin.repo.Latest("targets")) + len(origin.repo.Latest("snapshot")); before == 0 || before >= int64(whole) {
		t.Errorf("%d bytes for a first look at %d", before, whole)
	}
	for range 5 {
		must(t, branch.m.Refresh(t.Context()))
	}
	if n := upstream.MetadataBytes(up) - before; n != 0 {
		t.Errorf("%d bytes for polls of nothing new", n)
	}
	origin.repo.Publish("timestamp")
	export(t, origin.repo, origin.dir)
	must(t, origin.m.Refresh(t.Context()))
	must(t, branch.m.Refresh(t.Context()))
	if n := upstream.MetadataBytes(up) - before; n != int64(len(origin.repo.Latest("timestamp"))) {
		t.Errorf("%d bytes for a new timestamp", n)
	}
	if branch.timestamp() != origin.timestamp() {
		t.Errorf("timestamp %d, origin %d", branch.timestamp(), origin.timestamp())
	}
}

// TestFirstLookAmongMany: refresh and look-up of one patch among 100 000, in
// 1 024 bins, take 64 KiB of the wire at most, in either coding. The bins that a
// client does not fetch are left empty: what they hold is nowhere else.
func TestFirstLookAmongMany(t *testing.T) {
	const bits, patches, wanted = 10, 100_000, 77_777
	binOf := func(path string) int {
		sum := tuftest.Hash("sha256", []byte(path))
		return (int(sum[0])<<8 | int(sum[1])) >> (16 - bits)
	}
	one := func(i int) string {
		return fmt.Sprintf("patches/app/1.%d/linux-amd64/app_1.%d_amd64.deb", i, i)
	}
	s := newSite(t, func(s *site) {
		bins := s.repo.DelegateBins("product-app", bits, "app-bin")
		clear(s.repo.Targets["product-app"].Signed.Targets)
		clear(s.repo.Artifacts)
		for i := range patches {
			path := one(i)
			if binOf(path) != binOf(one(wanted)) {
				continue
			}
			custom := fmt.Appendf(nil, `{"patchkeep":{"format":1,"id":"app-1.%d","product":"app","version":"1.%d","kind":"deb","title":"app 1.%d","os":"linux","arch":"amd64","install":{"argv":["dpkg","-i","{file}"]}}}`, i, i, i)
			raw := json.RawMessage(custom)
			s.repo.Targets[bins[binOf(path)]].Signed.Targets[path] = &metadata.TargetFiles{
				Length: int64(1_000_000 + i), Hashes: metadata.Hashes{"sha256": tuftest.Hash("sha256", custom)}, Custom: &raw,
			}
		}
		s.repo.PublishAll()
		export(t, s.repo, s.dir)
	})
	for _, accept := range []string{"zstd", "gzip"} {
		wire := &counting{RoundTripper: s.srv.Client().Transport}
		c, err := tuf.Open(tuf.Config{Root: s.root, Fetcher: &packedFetcher{t, s, accept, wire}})
		must(t, err)
		must(t, c.Refresh(t.Context()))
		got, err := c.Target(t.Context(), one(wanted))
		must(t, err)
		if got.Length != 1_000_000+wanted {
			t.Errorf("length %d", got.Length)
		}
		c.Close()
		t.Logf("%s: %d requests, %d bytes of bodies", accept, wire.requests, wire.bytes)
		if wire.bytes > 64<<10 {
			t.Errorf("%s: %d bytes of bodies in %d requests", accept, wire.bytes, wire.requests)
		}
	}
}

// packedFetcher is a client that takes compressed metadata.
type packedFetcher struct {
	t      testing.TB
	s      *site
	accept string
	wire   *counting
}

func (f *packedFetcher) FetchMetadata(ctx context.Context, name string, _ int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.s.srv.URL+"/metadata/"+name, nil)
	must(f.t, err)
	req.Header.Set("Accept-Encoding", f.accept)
	resp, err := f.wire.RoundTrip(req)
	must(f.t, err)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, fs.ErrNotExist
	}
	body, err := io.ReadAll(resp.Body)
	must(f.t, err)
	return plainOf(f.t, resp, body), nil
}
