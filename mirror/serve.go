package mirror

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/fill"
)

// maxRanges in one request.
const maxRanges = 16

// bodyTimeout is how long the body of a request, which means nothing to us,
// may take before the connection is closed.
const bodyTimeout = 5 * time.Second

// Handler serves everything on one address.
func (m *Mirror) Handler() http.Handler { return m.router }

// Public serves the repository and /healthz only, for an address that strangers
// can reach.
func (m *Mirror) Public() http.Handler { return m.public }

// Admin serves what Public does not: /readyz, /metrics; and /healthz.
func (m *Mirror) Admin() http.Handler { return m.admin }

// ServeHTTP is Handler's.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.router.ServeHTTP(w, r) }

func (m *Mirror) routes() {
	m.router = m.frame(m.repositoryRoutes, m.adminRoutes)
	m.public = m.frame(m.repositoryRoutes)
	m.admin = m.frame(m.adminRoutes)
}

// frame makes a handler of routes and what all requests have in common. Paths
// are matched as they came, encoded and not cleaned: no redirect to what a
// stranger's `..` leads to.
func (m *Mirror) frame(routes ...func(*mux.Router)) http.Handler {
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	for _, add := range routes {
		add(r)
	}
	r.Path("/healthz").HandlerFunc(m.serveHealth)
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fail(w, http.StatusNotFound) })
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		pw := &responseWriter{ResponseWriter: w, control: http.NewResponseController(w), minRate: m.cfg.MinRate, route: "other"}
		pw.extend(0)
		if req.Body != nil && req.Body != http.NoBody { // nobody needs it, and it may drip for ever
			_ = pw.control.SetReadDeadline(time.Now().Add(bodyTimeout))
			pw.Header().Set("Connection", "close")
		}
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			pw.Header().Set("Allow", "GET, HEAD")
			fail(pw, http.StatusMethodNotAllowed)
		} else {
			r.ServeHTTP(pw, req)
		}
		m.seen.request(pw)
	})
}

func (m *Mirror) repositoryRoutes(r *mux.Router) {
	r.PathPrefix("/metadata/").HandlerFunc(m.serveMetadata)
	r.PathPrefix("/targets/").HandlerFunc(m.serveTarget)
}

func (m *Mirror) adminRoutes(r *mux.Router) {
	r.Path("/readyz").HandlerFunc(m.serveReady)
	r.Path("/metrics").Handler(promhttp.HandlerFor(m.registry(), promhttp.HandlerOpts{}))
}

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

// serveTarget serves an object that a view names, from its file in the cache.
func (m *Mirror) serveTarget(w http.ResponseWriter, r *http.Request) {
	label(w, "targets")
	s := m.shown.Load()
	if s == nil {
		failLater(w, http.StatusServiceUnavailable, "5")
		return
	}
	name, ok := objectName(strings.TrimPrefix(r.URL.EscapedPath(), "/"))
	if !ok {
		fail(w, http.StatusBadRequest)
		return
	}
	obj := s.object(name)
	if obj == nil {
		fail(w, http.StatusNotFound)
		return
	}
	h := w.Header()
	setObjectHeaders(h, name, obj)
	if oddRange(r.Header.Get("Range")) {
		r.Header.Del("Range")
	}
	// What needs no bytes costs no fill.
	if r.Method == http.MethodHead || matches(r.Header.Get("If-None-Match"), obj.etag) {
		http.ServeContent(w, r, "", time.Time{}, &sizeOnly{size: obj.Length})
		return
	}
	unhurried(w, true) // the wait is ours, not the client's
	file, hit, err := m.filler.Get(r.Context(), obj.Object)
	unhurried(w, false)
	if err != nil {
		m.failFill(w, r, err)
		return
	}
	defer file.Close()
	m.seen.object(hit)
	// The file itself, so that sendfile is reached.
	http.ServeContent(w, r, "", time.Time{}, file.File)
}

// failFill answers a request whose object did not come.
func (m *Mirror) failFill(w http.ResponseWriter, r *http.Request, err error) {
	for _, k := range objectHeaders {
		w.Header().Del(k)
	}
	switch {
	case r.Context().Err() != nil: // nobody listens
		w.WriteHeader(statusGone)
	case errors.Is(err, cache.ErrNoSpace):
		failLater(w, http.StatusServiceUnavailable, "30")
	case errors.Is(err, fill.ErrBusy), errors.Is(err, fill.ErrClosed), errors.Is(err, context.Canceled):
		failLater(w, http.StatusServiceUnavailable, "5")
	case errors.Is(err, fill.ErrUpstream):
		failLater(w, http.StatusBadGateway, "10")
	default:
		zerolog.Ctx(r.Context()).Error().Err(err).Msg("cannot serve object")
		fail(w, http.StatusInternalServerError)
	}
}

// objectName decodes a path as it stood in the URL, once, part by part: an
// encoded slash is no separator, and no object has one.
func objectName(escaped string) (string, bool) {
	if !strings.Contains(escaped, "%") {
		return escaped, true
	}
	parts := strings.Split(escaped, "/")
	for i, p := range parts {
		s, err := url.PathUnescape(p)
		if err != nil || strings.ContainsAny(s, "/\x00") {
			return "", false
		}
		parts[i] = s
	}
	return strings.Join(parts, "/"), true
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

// oddRange finds a Range that is better ignored, as RFC 9110 §14.2 allows: too
// many parts, or a part of the last no bytes, which net/http answers with a 206
// that makes no sense.
func oddRange(header string) bool {
	if strings.Count(header, ",") >= maxRanges {
		return true
	}
	_, specs, _ := strings.Cut(header, "=")
	for spec := range strings.SplitSeq(specs, ",") {
		if n, ok := strings.CutPrefix(strings.TrimSpace(spec), "-"); ok && strings.Trim(n, "0 \t") == "" {
			return true
		}
	}
	return false
}

// sizeOnly stands for a file of which only the size matters.
type sizeOnly struct{ size int64 }

func (s *sizeOnly) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return s.size + offset, nil
	}
	return offset, nil
}

func (s *sizeOnly) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func (m *Mirror) serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, "ok\n")
}
