package mirror

import (
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/patchkeep/patchkeep/mirror/access"
)

// bodyTimeout is how long the body of a request, which means nothing to us,
// may take before the connection is closed.
const bodyTimeout = 5 * time.Second

// healthPath is open to all, as often as they like: it says that the process is
// alive, to who may have no token.
const healthPath = "/healthz"

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
	m.router = m.frame(m.cfg.Access, true, true)
	m.public = m.frame(m.cfg.Access, true, false)
	m.admin = m.frame(nil, false, true)
}

// securityHeaders are on every answer: nothing here is for a browser to
// interpret. No value is ever written to.
var securityHeaders = []struct {
	name  string
	value []string
}{
	{"X-Content-Type-Options", noSniff},
	{"Content-Security-Policy", []string{"default-src 'none'; frame-ancestors 'none'"}},
	{"Referrer-Policy", []string{"no-referrer"}},
}

// strictTransport is on every answer over TLS.
var strictTransport = []string{"max-age=31536000"}

// frame makes a handler of routes and what all requests have in common. Paths
// are matched as they came, encoded and not cleaned: no redirect to what a
// stranger's `..` leads to. gate may be nil.
func (m *Mirror) frame(gate *access.Gate, repository, admin bool) http.Handler {
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	if repository {
		m.repositoryRoutes(r)
	}
	if admin {
		m.adminRoutes(r)
	}
	r.Path(healthPath).HandlerFunc(m.serveHealth)
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fail(w, http.StatusNotFound) })
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		pw := &responseWriter{ResponseWriter: w, req: req, control: *http.NewResponseController(w), minRate: m.cfg.MinRate, route: "other"}
		var began time.Time
		if gate != nil && gate.Logs() {
			began = time.Now()
		}
		defer func() { m.finish(pw, gate, began) }()
		pw.extend(0)
		h := w.Header()
		for _, s := range securityHeaders {
			h[s.name] = s.value
		}
		if req.TLS != nil {
			h["Strict-Transport-Security"] = strictTransport
		}
		if req.Body != nil && req.Body != http.NoBody { // nobody needs it, and it may drip for ever
			_ = pw.control.SetReadDeadline(time.Now().Add(bodyTimeout))
			h.Set("Connection", "close")
		}
		if gate != nil && req.URL.Path != healthPath {
			var refusal *access.Refusal
			if pw.visit, refusal = gate.Enter(req); refusal != nil {
				refusal.Write(pw)
				return
			}
		}
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			fail(pw, http.StatusMethodNotAllowed)
			return
		}
		if repository && req.URL.RawPath == "" && strings.HasPrefix(req.URL.Path, metadataPrefix) {
			m.serveMetadata(pw, req) // what is asked for most need not be looked for
			return
		}
		r.ServeHTTP(pw, req)
	})
}

// finish is also called for what was broken off by a panic, which goes on.
func (m *Mirror) finish(w *responseWriter, gate *access.Gate, began time.Time) {
	w.visit.Leave()
	m.seen.request(w)
	if !began.IsZero() {
		gate.Record(access.Entry{
			Request: w.req, Began: began, Route: w.route, Cache: w.cache, Name: w.visit.Name,
			Status: w.code, Bytes: w.sent, Cut: w.broken,
		})
	}
}

func (m *Mirror) repositoryRoutes(r *mux.Router) {
	r.PathPrefix("/metadata/").HandlerFunc(m.serveMetadata)
	r.PathPrefix("/targets/").HandlerFunc(m.serveTarget)
}

func (m *Mirror) adminRoutes(r *mux.Router) {
	r.Path("/readyz").HandlerFunc(m.serveReady)
	r.Path("/metrics").Handler(m.metricsHandler())
}

func (m *Mirror) serveHealth(w http.ResponseWriter, _ *http.Request) {
	label(w, "healthz")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, "ok\n")
}
