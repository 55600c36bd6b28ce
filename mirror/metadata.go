package mirror

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/patchkeep/patchkeep/mirror/fastlane"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	metadataPrefix = "/metadata/"

	// minPacked is the size in bytes up to which nothing is compressed: one
	// packet carries it either way.
	minPacked = 512
)

// doc is a metadata file as it is served. It is compressed when somebody first
// asks for that, and then kept: of a thousand bins few are asked for between
// two views.
type doc struct {
	file     string // name on disk: layout.MetadataFile
	body     []byte
	cache    []string // Cache-Control
	variants [codings]variant
}

// variant is one coding of a doc with the values of its headers, none of which
// is ever written to.
type variant struct {
	coding coding
	etag   []string
	once   sync.Once // guards the making of what follows
	body   []byte
	length []string
	pays   bool // worth being sent to who would take the plain one, too

	fast, same atomic.Pointer[fastlane.Response] // 200 and 304 in the fast lane; nil: not made yet, or too large
}

// Headers that are the same for all.
var (
	typeJSON = []string{"application/json"}
	noSniff  = []string{"nosniff"}
	vary     = []string{"Accept-Encoding"}

	// The 404 of the root after the last one, which every client asks for at
	// every poll. A cache on the way may take the herd off us for a moment;
	// longer, and clients behind it would refuse what a new root has signed.
	noRoot       = []byte("Not Found\n")
	noRootCache  = []string{"public, max-age=1"}
	noRootLength = []string{strconv.Itoa(len(noRoot))}
	typeText     = []string{"text/plain; charset=utf-8"}
)

func newDoc(role string, version int64, body []byte) *doc {
	file := layout.MetadataFile(role, version)
	d := &doc{file: file, body: body, cache: []string{layout.CacheControl(layout.MetadataDir + "/" + file)}}
	tag := upstream.Tag(body)
	for c := range d.variants {
		d.variants[c].coding = coding(c)
		d.variants[c].etag = []string{`"` + tag + coding(c).suffix() + `"`}
	}
	return d
}

// in returns the doc in a coding, which is made if need be.
func (d *doc) in(c coding) *variant {
	v := &d.variants[c]
	v.once.Do(func() {
		v.body = d.body
		if c != identity {
			v.body = packers().pack(c, d.body)
			v.pays = len(v.body) <= len(d.body)*9/10
		}
		v.length = []string{strconv.Itoa(len(v.body))}
	})
	return v
}

// choose finds the coding that a client likes best, a compressed one only if that
// pays or if the client takes nothing else. ok is false if it takes none.
func (d *doc) choose(acceptEncoding string) (c coding, ok bool) {
	if acceptEncoding == "" {
		return identity, true
	}
	q := qualities(acceptEncoding)
	best := identity
	for _, c := range [...]coding{zstandard, gzipped} { // zstd is smaller than gzip
		switch {
		case q[c] == 0, q[c] < q[best], q[c] == q[best] && best != identity:
		case q[identity] > 0 && (len(d.body) <= minPacked || !d.in(c).pays):
		default:
			best = c
		}
	}
	return best, q[best] > 0
}

// matched finds the variant that an If-None-Match names; a client that has any
// of them has the content. "*" is the one that would be sent.
func (d *doc) matched(ifNoneMatch string, would coding) *variant {
	if ifNoneMatch == "" {
		return nil
	}
	for i := range codings {
		if v := &d.variants[(would+i)%codings]; matches(ifNoneMatch, v.etag[0]) {
			return v
		}
	}
	return nil
}

// serveMetadata answers from memory: whatever no view has is not there, also at
// the upstream, as far as anybody here can tell.
func (m *Mirror) serveMetadata(w http.ResponseWriter, r *http.Request) {
	label(w, "metadata")
	s := m.shown.Load()
	if s == nil {
		failLater(w, http.StatusServiceUnavailable, "5")
		return
	}
	name := strings.TrimPrefix(r.URL.EscapedPath(), metadataPrefix)
	if strings.Contains(name, "%") {
		var err error
		if name, err = url.PathUnescape(name); err != nil {
			fail(w, http.StatusBadRequest)
			return
		}
	}
	d := s.doc(name)
	if d == nil && s.isNextRoot(name) {
		setNoRootHeader(w.Header())
		w.WriteHeader(http.StatusNotFound)
		if r.Method == http.MethodGet {
			_, _ = w.Write(noRoot)
		}
		return
	}
	if d == nil {
		fail(w, http.StatusNotFound)
		return
	}
	h := w.Header()
	c, ok := d.choose(strings.Join(r.Header["Accept-Encoding"], ","))
	if !ok {
		h["Vary"] = vary
		fail(w, http.StatusNotAcceptable)
		return
	}
	v, status := d.matched(strings.Join(r.Header["If-None-Match"], ","), c), http.StatusNotModified
	if v == nil {
		v, status = d.in(c), http.StatusOK
	}
	d.setHeader(h, v, status)
	w.WriteHeader(status)
	if r.Method == http.MethodGet && status == http.StatusOK {
		_, _ = w.Write(v.body)
	}
}

// setHeader says what there is to say about a variant. A 304 repeats what a
// cache may need (RFC 9110 §15.4.5).
func (d *doc) setHeader(h http.Header, v *variant, status int) {
	h["Cache-Control"], h["Etag"], h["Vary"], h["X-Content-Type-Options"] = d.cache, v.etag, vary, noSniff
	if status == http.StatusNotModified {
		return
	}
	h["Content-Length"], h["Content-Type"] = v.length, typeJSON
	if enc := v.coding.header(); enc != nil {
		h["Content-Encoding"] = enc
	}
}

func setNoRootHeader(h http.Header) {
	h["Cache-Control"], h["Content-Length"], h["Content-Type"], h["X-Content-Type-Options"] = noRootCache, noRootLength, typeText, noSniff
}

// isNextRoot says whether a name is that of the root after the last one. That
// there is none yet is known from the mirror's own walk.
func (s *shown) isNextRoot(name string) bool {
	var buf [40]byte
	next := append(strconv.AppendInt(buf[:0], s.current().root+1, 10), "."+roleRoot+".json"...)
	return string(next) == name
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
