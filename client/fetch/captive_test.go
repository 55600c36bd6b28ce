package fetch_test

import (
	"compress/gzip"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// A network that wants a log-in is told apart from a server that lies, and from
// one that says in HTML that something is not there.
func TestCaptivePortals(t *testing.T) {
	page := func(status int, contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			w.Write([]byte(body))
		}
	}
	portal := httptest.NewServer(page(200, "text/html; charset=utf-8", "<html>log in"))
	t.Cleanup(portal.Close)
	broken := httptest.NewServer(page(404, "text/html", "<html>no such room"))
	t.Cleanup(broken.Close)
	to := func(url string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, url+"/login", http.StatusFound) }
	}
	for name, c := range map[string]struct {
		answer   http.HandlerFunc
		metadata error
		file     error
	}{
		"a page":             {page(200, "text/html", "<html>log in"), fetch.ErrCaptivePortal, fetch.ErrCaptivePortal},
		"a page in capitals": {page(200, "TEXT/HTML;charset=x", "LOG IN"), fetch.ErrCaptivePortal, fetch.ErrCaptivePortal},
		"XHTML":              {page(203, "application/xhtml+xml", "<html/>"), fetch.ErrCaptivePortal, fetch.ErrCaptivePortal},
		"a page as JSON":     {page(200, "application/json", "\xef\xbb\xbf \r\n<!DOCTYPE html>"), fetch.ErrCaptivePortal, fetch.ErrCorrupt},
		"a page without type": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			w.Write([]byte("<script>"))
		}, fetch.ErrCaptivePortal, fetch.ErrCorrupt},
		"511":                  {page(511, "text/plain", "log in"), fetch.ErrCaptivePortal, fetch.ErrCaptivePortal},
		"a redirect to a page": {to(portal.URL), fetch.ErrCaptivePortal, fetch.ErrCaptivePortal},
		"a redirect to a 404":  {to(broken.URL), fetch.ErrCaptivePortal, fetch.ErrCaptivePortal},
		"a packed page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			z.Write([]byte("<html>"))
			z.Close()
		}, fetch.ErrCaptivePortal, fetch.ErrCorrupt},
		"a 404 with a page": {page(404, "text/html", "<html>not here"), fs.ErrNotExist, fs.ErrNotExist},
		"a 503 with a page": {page(503, "text/html", "<html>not now"), tuf.ErrOffline, tuf.ErrOffline},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := httptest.NewServer(c.answer)
			defer ts.Close()
			f := fetch.New(quick)
			_, err := f.Metadata(ts.URL).FetchMetadata(t.Context(), "2.root.json", 1000)
			check := func(what string, err, want error) {
				t.Helper()
				if !errors.Is(err, want) || errors.Is(err, fetch.ErrCaptivePortal) != (want == fetch.ErrCaptivePortal) {
					t.Errorf("%s: %v, want %v", what, err, want)
				}
			}
			check("metadata", err, c.metadata)
			_, err = f.File(t.Context(), request(t, newObject(100), ts.URL+"/object"))
			check("file", err, c.file)
		})
	}
	if !errors.Is(fetch.ErrCaptivePortal, tuf.ErrOffline) || errors.Is(fetch.ErrCaptivePortal, tuf.ErrNotTrusted) {
		t.Error("a captive portal is a network that cannot be used, and no attack")
	}
}

// A file that is a web page is one.
func TestPagesCanBeFiles(t *testing.T) {
	o := newObject(1000)
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write(o.data)
	}))
	defer ts.Close()
	r := request(t, o, ts.URL+"/manual.html")
	if _, err := fetch.New(quick).File(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
}
