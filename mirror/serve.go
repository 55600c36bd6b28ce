package mirror

import (
	"io"
	"net/http"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

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

func (m *Mirror) serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, "ok\n")
}
