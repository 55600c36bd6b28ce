package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

var body = []byte("0123456789")

// hasty is for upstreams that keep us waiting; the others have the time that
// a busy machine may need.
var (
	hasty   = upstream.Limits{Open: 100 * time.Millisecond, Stall: 50 * time.Millisecond, Metadata: 100 * time.Millisecond, MinRate: 1000}
	patient = upstream.Limits{}
)

func limits(name string) upstream.Limits {
	if strings.HasPrefix(name, "never") {
		return hasty
	}
	return patient
}

// serve starts a server and returns an upstream of it.
func serve(t *testing.T, lim upstream.Limits, h http.HandlerFunc) upstream.Upstream {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	u, err := upstream.NewHTTP(s.URL + "/base/")
	if err != nil {
		t.Fatal(err)
	}
	return upstream.Guard(u, lim)
}

func TestFetchMetadata(t *testing.T) {
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		want error // nil: body
	}{
		{"good", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.EscapedPath() != "/base/metadata/3.a%2Fb.json" || r.Header.Get("Accept-Encoding") != "zstd, gzip;q=0.9" || r.Header.Get("Range") != "" {
				t.Errorf("request for %s with %v", r.URL.EscapedPath(), r.Header)
			}
			w.Write(body)
		}, nil},
		{"absent", http.NotFound, fs.ErrNotExist},
		{"forbidden", status(403), fs.ErrNotExist},
		{"gone", status(410), fs.ErrNotExist},
		{"broken", status(500), tuf.ErrOffline},
		{"busy", status(429), tuf.ErrOffline},
		{"no content", status(204), tuf.ErrOffline},
		{"partial unasked", status(206), tuf.ErrOffline},
		{"too large", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 101)) }, tuf.ErrTooLarge},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, tuf.ErrTooLarge},
		{"never answers", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, tuf.ErrOffline},
		{"never ends", func(w http.ResponseWriter, r *http.Request) {
			w.Write(body)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, tuf.ErrOffline},
		{"cut", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "50"); w.Write(body) }, tuf.ErrOffline},
		{"coding unasked", coded("br", body), tuf.ErrOffline},
		{"two codings", coded("gzip, zstd", body), tuf.ErrOffline},
		{"gzip", coded("gzip", gzipOf(body)), nil},
		{"zstd", coded("zstd", zstdOf(body)), nil},
		{"not gzip", coded("gzip", body), tuf.ErrOffline},
		{"not zstd", coded("zstd", body), tuf.ErrOffline},
		{"cut gzip", coded("gzip", gzipOf(body)[:20]), tuf.ErrOffline},
		{"cut zstd", coded("zstd", zstdOf(body)[:15]), tuf.ErrOffline},
		{"gzip with a wrong checksum", coded("gzip", flipped(gzipOf(body), -6)), tuf.ErrOffline},
		{"zstd with a wrong checksum", coded("zstd", flipped(zstdOf(body), -1)), tuf.ErrOffline},
		{"gzip bomb", coded("gzip", gzipOf(make([]byte, 1<<22))), tuf.ErrTooLarge},
		{"zstd bomb", coded("zstd", zstdOf(make([]byte, 1<<22))), tuf.ErrTooLarge},
		{"zstd with a huge window", coded("zstd", []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8, 1, 0, 0}), tuf.ErrOffline},
		{"endless gzip of nothing", endlessly("gzip", gzipOf(nil)), tuf.ErrTooLarge},
		{"endless zstd of nothing", endlessly("zstd", []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}), tuf.ErrTooLarge},
		{"not modified unasked", status(304), tuf.ErrOffline},
		{"huge headers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
			w.Write(body)
		}, tuf.ErrOffline},
		{"redirects for ever", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) }, tuf.ErrOffline},
		{"redirects to a file", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, tuf.ErrOffline},
	} {
		data, err := serve(t, limits(c.name), c.h).FetchMetadata(t.Context(), "3.a%2Fb.json", 100)
		if c.want == nil && !bytes.Equal(data, body) || !errors.Is(err, c.want) {
			t.Errorf("%s: %q, %v; want %v", c.name, data, err, c.want)
		}
	}
}

func gzipOf(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func zstdOf(data []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// flipped changes the byte at a place counted from the end.
func flipped(data []byte, at int) []byte {
	data[len(data)+at] ^= 1
	return data
}

func coded(coding string, data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", coding)
		w.Write(data)
	}
}

// endlessly sends what decompresses to nothing.
func endlessly(coding string, data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", coding)
		for {
			if _, err := w.Write(bytes.Repeat(data, 100)); err != nil {
				return
			}
		}
	}
}

// TestTimestampUnchanged: only a timestamp that is new crosses the line, and a
// liar gains nothing from it.
func TestTimestampUnchanged(t *testing.T) {
	served, sent := bytes.Repeat([]byte("a"), 90), 0
	lie := false
	plain, err := upstream.NewHTTP("http://127.0.0.1:1")
	if err != nil || upstream.MetadataBytes(plain) != 0 {
		t.Fatal(err)
	}
	u := serve(t, patient, func(w http.ResponseWriter, r *http.Request) {
		switch tag := upstream.ETag(served); {
		case lie: // wrong bytes under the right tag
			w.Header().Set("Etag", tag)
			w.Write(body)
		case r.Header.Get("If-None-Match") == tag:
			w.WriteHeader(http.StatusNotModified)
		default:
			w.Header().Set("Etag", tag)
			w.Write(served)
			sent += len(served)
		}
	})
	want := func(step string, name string, data []byte, total int) {
		t.Helper()
		got, err := u.FetchMetadata(t.Context(), name, 100)
		if err != nil || !bytes.Equal(got, data) || sent != total {
			t.Errorf("%s: %q, %v; %d bytes sent, want %d", step, got, err, sent, total)
		}
	}
	want("first", "timestamp.json", served, 90)
	want("again", "timestamp.json", served, 90)
	want("another file", "1.root.json", served, 180)
	if n := upstream.MetadataBytes(u); n != 180 {
		t.Errorf("%d bytes counted", n)
	}
	if _, err := u.FetchMetadata(t.Context(), "timestamp.json", 80); !errors.Is(err, tuf.ErrTooLarge) {
		t.Errorf("what is known is larger than now allowed: %v", err)
	}
	lie = true
	sent = 0
	want("lie", "timestamp.json", body, 0)
	lie = false
	want("after the lie", "timestamp.json", served, 90)
	served = bytes.Repeat([]byte("b"), 80)
	want("new", "timestamp.json", served, 170)
	want("new again", "timestamp.json", served, 170)
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// partial answers 206 with a Content-Range.
func partial(contentRange, data string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, data)
	}
}

func TestOpenTarget(t *testing.T) {
	const object = "targets/a b/%41 ü?#.x"
	for _, c := range []struct {
		name   string
		h      http.HandlerFunc
		offset int64
		size   int64
		data   string
		want   error
	}{
		{"whole", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.EscapedPath() != "/base/targets/a%20b/%2541%20%C3%BC%3F%23.x" {
				t.Errorf("request for %s", r.URL.EscapedPath())
			}
			w.Write(body)
		}, 0, 10, "0123456789", nil},
		{"unknown length", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); w.Write(body) }, 0, -1, "0123456789", nil},
		{"rest", func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(body))
		}, 4, 10, "456789", nil},
		{"no Range", func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }, 4, 10, "456789", nil},
		{"unknown total", partial("bytes 4-9/*", "456789"), 4, -1, "456789", nil},
		{"another range", partial("bytes 3-9/10", "3456789"), 4, 0, "", tuf.ErrOffline},
		{"shorter range", partial("bytes 4-8/10", "45678"), 4, 0, "", tuf.ErrOffline},
		{"range of another length", partial("bytes 4-9/10", "45"), 4, 0, "", tuf.ErrOffline},
		{"no Content-Range", partial("", "456789"), 4, 0, "", tuf.ErrOffline},
		{"signs in Content-Range", partial("bytes +4-9/10", "456789"), 4, 0, "", tuf.ErrOffline},
		{"absurd Content-Range", partial("bytes 4-99999999999999999999/10", "456789"), 4, 0, "", tuf.ErrOffline},
		{"several parts", partial("multipart/byteranges", "456789"), 4, 0, "", tuf.ErrOffline},
		{"unasked range", partial("bytes 0-9/10", "0123456789"), 0, 0, "", tuf.ErrOffline},
		{"beyond", status(416), 10, 0, "", tuf.ErrOffline},
		{"absent", http.NotFound, 0, 0, "", fs.ErrNotExist},
		{"never answers", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 0, 0, "", tuf.ErrOffline},
	} {
		rc, size, err := serve(t, limits(c.name), c.h).OpenTarget(t.Context(), object, c.offset)
		if !errors.Is(err, c.want) || size != c.size {
			t.Errorf("%s: size %d, %v; want %d, %v", c.name, size, err, c.size, c.want)
		}
		if err != nil {
			continue
		}
		if data, err := io.ReadAll(rc); err != nil || string(data) != c.data {
			t.Errorf("%s: %q, %v", c.name, data, err)
		}
		rc.Close()
	}
}

// TestGuardEndsSlowBodies: one that stalls, and one that drips.
func TestGuardEndsSlowBodies(t *testing.T) {
	for name, pause := range map[string]time.Duration{"stalls": time.Hour, "drips": 10 * time.Millisecond} {
		u := serve(t, upstream.Limits{Stall: hasty.Stall, MinRate: hasty.MinRate}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			for {
				w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(pause):
				}
			}
		})
		rc, _, err := u.OpenTarget(t.Context(), "targets/x", 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, rc); !errors.Is(err, tuf.ErrOffline) {
			t.Errorf("%s: %v", name, err)
		}
		rc.Close()
	}
}

// TestCancelled: the context ends everything, as itself.
func TestCancelled(t *testing.T) {
	u := serve(t, patient, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.FetchMetadata(ctx, "timestamp.json", 10); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, _, err := u.OpenTarget(ctx, "targets/x", 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestRedirects(t *testing.T) {
	hops := 3
	u := serve(t, patient, func(w http.ResponseWriter, r *http.Request) {
		if n := len(r.URL.Query()["x"]); n < hops {
			http.Redirect(w, r, r.URL.Path+"?"+strings.Repeat("x=1&", n+1), http.StatusTemporaryRedirect)
			return
		}
		w.Write(body)
	})
	if data, err := u.FetchMetadata(t.Context(), "timestamp.json", 100); err != nil || !bytes.Equal(data, body) {
		t.Errorf("%q, %v", data, err)
	}
	hops = 4
	if _, err := u.FetchMetadata(t.Context(), "timestamp.json", 100); !errors.Is(err, tuf.ErrOffline) {
		t.Error(err)
	}
}

func TestReferences(t *testing.T) {
	for _, ref := range []string{"http://", "http://user:secret@", "https://x/?token=secret", "https://x/#f", "http://%zz:secret/", ""} {
		if u, err := upstream.Open(t.Context(), ref, upstream.Limits{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("Open(%q) = %v, %v", ref, u, err)
		}
	}
	u, err := upstream.Open(t.Context(), "http://user:secret@127.0.0.1:1/x/", upstream.Limits{})
	if err != nil || u.String() != "http://127.0.0.1:1/x" {
		t.Errorf("%v, %v", u, err)
	}
	if _, err := u.FetchMetadata(t.Context(), "timestamp.json", 10); !errors.Is(err, tuf.ErrOffline) || strings.Contains(fmt.Sprint(err), "secret") {
		t.Error(err)
	}
	dir, err := upstream.Open(t.Context(), t.TempDir(), upstream.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.FetchMetadata(t.Context(), "timestamp.json", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, _, err := dir.OpenTarget(t.Context(), "targets/x", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
