package mirror

import (
	"net/http"
	"net/url"
	"strings"
)

// serveMetadata answers from memory: whatever no view has is not there.
func (m *Mirror) serveMetadata(w http.ResponseWriter, r *http.Request) {
	label(w, "metadata")
	s := m.shown.Load()
	if s == nil {
		failLater(w, http.StatusServiceUnavailable, "5")
		return
	}
	name, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/metadata/"))
	if err != nil {
		fail(w, http.StatusBadRequest)
		return
	}
	d := s.doc(name)
	if d == nil {
		fail(w, http.StatusNotFound)
		return
	}
	h := w.Header()
	for k, v := range d.headers {
		h[k] = v
	}
	if matches(r.Header.Get("If-None-Match"), d.etag) {
		h.Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(d.body)
	}
}

// matches says whether an If-None-Match names our etag (RFC 9110 §13.1.2).
func matches(header, etag string) bool {
	if header == "" {
		return false
	}
	for tag := range strings.SplitSeq(header, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}
