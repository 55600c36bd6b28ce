package mirror_test

import (
	"bytes"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzRange: whatever the header, what comes is a part of the right bytes, or
// a refusal.
func FuzzRange(f *testing.F) {
	s := newSite(f)
	s.want(patchB, bytesB)
	for _, r := range []string{
		"bytes=0-", "bytes=-1", "bytes=5-9,20-30", "bytes=70000-", "bytes=9-1", "bytes=0-0,-1",
		"bytes=18446744073709551616-", "bytes=-9223372036854775808", "bytes= 1 - 2 ", "octets=1-2", "bytes=,,,", "bytes=0-99999999999999",
	} {
		f.Add(r, "")
		f.Add(r, `"`+hashOf(bytesB)+`"`)
	}
	path := urlOf(patchB, bytesB)
	f.Fuzz(func(t *testing.T, header, ifRange string) {
		req := httptest.NewRequest("GET", path, nil)
		req.Header["Range"] = []string{header}
		if ifRange != "" {
			req.Header["If-Range"] = []string{ifRange}
		}
		rec := httptest.NewRecorder()
		s.m.ServeHTTP(rec, req)
		switch body := rec.Body.Bytes(); rec.Code {
		case 200:
			if !bytes.Equal(body, bytesB) {
				t.Errorf("Range %q: 200 with %d bytes", header, len(body))
			}
		case 206:
			multi := strings.HasPrefix(rec.Header().Get("Content-Type"), "multipart/byteranges")
			if !multi && (len(body) == 0 || !bytes.Contains(bytesB, body)) || len(body) > len(bytesB)+16*200 {
				t.Errorf("Range %q: 206 with %d bytes", header, len(body))
			}
		case 416:
		default:
			t.Errorf("Range %q: status %d", header, rec.Code)
		}
	})
}

// FuzzPath: whatever the path, nothing reaches the upstream but the names of
// the view, and nothing is served but what was published.
func FuzzPath(f *testing.F) {
	s := newSite(f)
	for path, data := range map[string][]byte{patchA: bytesA, patchB: bytesB, empty: nil} {
		s.want(path, data)
		f.Add(urlOf(path, data))
	}
	known := map[string]bool{"ok\n": true, string(bytesA): true, string(bytesB): true, "": true}
	for _, versions := range s.repo.Published {
		for _, data := range versions {
			known[string(data)] = true
		}
	}
	for _, p := range []string{"/metadata/timestamp.json", "/metadata/%31.root.json", "/metadata/..%2f", "/targets/%00", "/targets/../x", "//", "/%", "/targets/%2e%2e/%2e%2e/etc/passwd"} {
		f.Add(p)
	}
	transfers, fetches := s.up.transfers.Load(), s.up.fetches.Load()
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return // net/http answers 400
		}
		if u.Path == "/readyz" || u.Path == "/metrics" {
			return
		}
		req := httptest.NewRequest("GET", "/", nil)
		req.URL, req.RequestURI = u, path
		rec := httptest.NewRecorder()
		s.m.ServeHTTP(rec, req)
		if rec.Code == 200 && !known[rec.Body.String()] || rec.Code != 200 && rec.Code != 400 && rec.Code != 404 {
			t.Errorf("GET %q: status %d, %d bytes", path, rec.Code, rec.Body.Len())
		}
		if s.up.transfers.Load() != transfers || s.up.fetches.Load() != fetches {
			t.Errorf("GET %q reached the upstream", path)
		}
	})
}
