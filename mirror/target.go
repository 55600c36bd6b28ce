package mirror

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/fill"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

// maxRanges in one request.
const maxRanges = 16

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
	via := upstream.ParseVia(r.Header)
	via.Sibling = via.Sibling && len(m.cfg.Siblings) > 0 // anybody can say so
	obj := s.object(name)
	if obj == nil && via.Sibling {
		obj = m.catchUp(r.Context(), name)
	}
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
	if via.Passed(m.id) {
		clearObjectHeaders(h)
		fail(w, http.StatusLoopDetected)
		return
	}
	unhurried(w, true) // the wait is ours, not the client's
	asked := time.Now()
	file, err := m.filler.Open(r.Context(), obj.Object, fill.Request{Hops: via.Hops, Sibling: via.Sibling})
	unhurried(w, false)
	if err != nil {
		m.failFill(w, r, err)
		return
	}
	defer file.Close()
	m.seen.object(file, len(via.Hops) == 0, asked)
	labelCache(w, file.Hit())
	if file.Hit() { // the file itself, so that sendfile is reached at once
		http.ServeContent(w, r, "", time.Time{}, file.File())
		return
	}
	http.ServeContent(w, r, "", time.Time{}, file)
	if err := file.Err(); err != nil && r.Context().Err() == nil {
		// Part of it is sent, and must not look like the whole.
		zerolog.Ctx(r.Context()).Warn().Err(err).Str("object", name).Msg("cannot finish object: connection aborted")
		panic(http.ErrAbortHandler)
	}
}

// failFill answers a request whose object did not come.
func (m *Mirror) failFill(w http.ResponseWriter, r *http.Request, err error) {
	clearObjectHeaders(w.Header())
	switch {
	case r.Context().Err() != nil: // nobody listens
		w.WriteHeader(statusGone)
	case errors.Is(err, cache.ErrNoSpace):
		failLater(w, http.StatusServiceUnavailable, "30")
	case errors.Is(err, fill.ErrBusy), errors.Is(err, fill.ErrClosed), errors.Is(err, context.Canceled):
		failLater(w, http.StatusServiceUnavailable, "5")
	case errors.Is(err, fill.ErrLoop):
		fail(w, http.StatusLoopDetected)
	case errors.Is(err, fill.ErrUpstream):
		failLater(w, http.StatusBadGateway, "10")
	default:
		zerolog.Ctx(r.Context()).Error().Err(err).Msg("cannot serve object")
		fail(w, http.StatusInternalServerError)
	}
}

// clearObjectHeaders takes away what a failure must not carry.
func clearObjectHeaders(h http.Header) {
	for _, k := range objectHeaders {
		h.Del(k)
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
