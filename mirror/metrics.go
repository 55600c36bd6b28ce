package mirror

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/fill"

	"github.com/patchkeep/patchkeep/mirror/fastlane"
)

// The routes under which requests are counted. There are no others, so that
// nobody outside can make new time series.
const (
	routeOther = iota
	routeMetadata
	routeTargets
	routeHealthz
	routeReadyz
	routeMetrics
	routes
)

var routeNames = [routes]string{"other", "metadata", "targets", "healthz", "readyz", "metrics"}

func routeIndex(name string) int {
	switch name {
	case "metadata":
		return routeMetadata
	case "targets":
		return routeTargets
	case "healthz":
		return routeHealthz
	case "readyz":
		return routeReadyz
	case "metrics":
		return routeMetrics
	}
	return routeOther
}

// maxCode bounds the status codes that are told apart; RFC 9110 §15 has no others.
const maxCode = 600

// counters are what a Mirror counts beside what its parts count. A request
// costs two additions here, no look-up of labels: Collect makes the time series.
type counters struct {
	requests [routes][maxCode]atomic.Int64
	sent     [routes]atomic.Int64 // bytes of bodies
	hits     atomic.Int64
	joins    atomic.Int64
	misses   atomic.Int64
	accepted atomic.Int64 // connections
	closed   atomic.Int64

	now       func() time.Time
	started   time.Time
	firstByte prometheus.Histogram
	fillTime  prometheus.Histogram

	// Fills that failed: for want of space, or for another reason.
	noRoom, failed atomic.Int64

	mu      sync.Mutex // guards what follows
	saved   int64      // the most that was saved so far
	noSpace trouble
	view    trouble // of keeping it on the disk
	lives   lives
}

func newCounters(now func() time.Time) *counters {
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: metricPrefix + name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		})
	}
	return &counters{
		now: now, started: now(),
		firstByte: histogram("first_byte_wait_seconds",
			"How long clients waited for the first byte of an object that was not cached.",
			0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
		fillTime: histogram("fill_duration_seconds",
			"How long transfers took that brought an object, from their turn to the object in the cache.",
			0.05, 0.25, 1, 5, 15, 60, 300, 900, 3600, 4*3600),
	}
}

// request counts an answer that has been given.
func (c *counters) request(w *responseWriter) {
	w.begin()
	r, code := routeIndex(w.route), w.code
	if code < 0 || code >= maxCode {
		code = 0
	}
	c.requests[r][code].Add(1)
	c.sent[r].Add(w.sent)
}

// object counts a request whose object could be had: from the cache, from the
// fill of somebody else, or from one of its own. Another mirror is told at once
// that the object will come, so that its wait says nothing.
func (c *counters) object(r *fill.Reader, waited bool, asked time.Time) {
	switch {
	case r.Hit():
		c.hits.Add(1)
		return
	case r.Joined():
		c.joins.Add(1)
	default:
		c.misses.Add(1)
	}
	if waited {
		c.firstByte.Observe(time.Since(asked).Seconds())
	}
}

// fillEnded is for fill.Config.
func (c *counters) fillEnded(e fill.Ending) {
	switch {
	case e.Err == nil:
		c.fillTime.Observe(e.Took.Seconds())
	case errors.Is(e.Err, cache.ErrNoSpace):
		c.noRoom.Add(1)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.noSpace.note(c.now(), e.Err)
	case !errors.Is(e.Err, context.Canceled) && !errors.Is(e.Err, fill.ErrClosed):
		c.failed.Add(1)
	}
}

// viewKept remembers whether the view could be written to the disk.
func (c *counters) viewKept(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view.note(c.now(), err)
}

// trouble is what went wrong, and has not gone well since, or not been tried.
type trouble struct {
	since, last time.Time
	err         error // of the last time; nil: none
}

func (t *trouble) note(now time.Time, err error) {
	switch {
	case err == nil:
		*t = trouble{}
	case t.err == nil || now.Sub(t.last) > lately:
		*t = trouble{now, now, err}
	default:
		t.last, t.err = now, err
	}
}

// ConnState is for http.Server: it counts the connections of all servers that
// have it.
func (m *Mirror) ConnState(c net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		if !fastlane.Handed(c) { // or it was counted when it came
			m.seen.accepted.Add(1)
		}
	case http.StateClosed, http.StateHijacked:
		m.seen.closed.Add(1)
	}
}

// Served says what the mirror has done for its clients since it was started.
type Served struct {
	Hits       int64   `json:"hits"`           // requests for objects that were cached
	Joins      int64   `json:"joins"`          // that read along with a fill that another one had begun
	Misses     int64   `json:"misses"`         // that began a fill
	HitRatio   float64 `json:"hit_ratio"`      // (hits + joins) / all; 0 before the first
	Sent       int64   `json:"sent_bytes"`     // of objects, to clients
	Received   int64   `json:"received_bytes"` // of objects, from upstreams; siblings do not count
	Saved      int64   `json:"saved_bytes"`    // the most that sent has been ahead of received
	SavedRatio float64 `json:"saved_ratio"`    // saved / sent
}

// served adds up what was served, given what was received for it. Saved never
// shrinks: what comes now is for requests that are counted when they end.
func (c *counters) served(received int64) Served {
	s := Served{
		Hits: c.hits.Load(), Joins: c.joins.Load(), Misses: c.misses.Load(),
		Sent: c.sent[routeTargets].Load(), Received: received,
	}
	c.mu.Lock()
	c.saved = max(c.saved, s.Sent-s.Received)
	s.Saved = c.saved
	c.mu.Unlock()
	if all := s.Hits + s.Joins + s.Misses; all > 0 {
		s.HitRatio = float64(s.Hits+s.Joins) / float64(all)
	}
	if s.Sent > 0 {
		s.SavedRatio = float64(s.Saved) / float64(s.Sent)
	}
	return s
}

// registry is this mirror's own: two of them in one process do not mix.
func (m *Mirror) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewBuildInfoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.seen.firstByte, m.seen.fillTime, statusCollector{m})
	return r
}

// maxScrapes at once: each looks at everything.
const maxScrapes = 4

func (m *Mirror) metricsHandler() http.Handler {
	h := promhttp.HandlerFor(m.registry(), promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, EnableOpenMetrics: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		label(w, "metrics")
		h.ServeHTTP(w, r)
	})
}

const metricPrefix = "patchkeep_mirror_"

// statusCollector turns a Status into metrics, when it is asked for them, so
// that /readyz and /metrics never disagree.
type statusCollector struct{ m *Mirror }

// Describe sends nothing: which roles and upstreams there are is seen later.
func (statusCollector) Describe(chan<- *prometheus.Desc) {}

// Collect is for the registry.
func (c statusCollector) Collect(out chan<- prometheus.Metric) {
	e := exposition{out}
	s := c.m.Status()
	e.requests(c.m.seen)
	e.view(&s)
	e.cache(&s)
	e.fills(&s, c.m.seen)
	e.prefill(&s)
	e.sources(&s)
}

// exposition writes metrics. Labels come in pairs of name and value.
type exposition struct{ out chan<- prometheus.Metric }

func (e exposition) send(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
	var names, values []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	e.out <- prometheus.MustNewConstMetric(prometheus.NewDesc(metricPrefix+name, help, names, nil), kind, v, values...)
}

func (e exposition) gauge(name, help string, v float64, labels ...string) {
	e.send(prometheus.GaugeValue, name, help, v, labels...)
}

func (e exposition) counter(name, help string, v int64, labels ...string) {
	e.send(prometheus.CounterValue, name, help, float64(v), labels...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// age is for how many seconds something has not happened again, if never since
// the start.
func (s *Status) age(last time.Time) float64 {
	if last.IsZero() {
		last = s.Started
	}
	return s.Now.Sub(last).Seconds()
}

func (e exposition) requests(c *counters) {
	for r := range c.requests {
		for code := range c.requests[r] {
			n := c.requests[r][code].Load()
			// Those that a rate is taken of are there from the start.
			if n > 0 || code == http.StatusOK {
				e.counter("requests_total", "Requests answered; code 499: the client left before.", n,
					"route", routeNames[r], "code", strconv.Itoa(code))
			}
		}
		e.counter("sent_bytes_total", "Bytes of bodies sent to clients, counted at the end of each answer.", c.sent[r].Load(), "route", routeNames[r])
	}
}

func (e exposition) view(s *Status) {
	e.gauge("ready", "1 if /readyz says so.", truth(s.Ready))
	e.gauge("warnings", "Warnings that /readyz gives.", float64(len(s.Warnings)))
	if v := s.View; v != nil {
		for role, n := range map[string]int64{"root": v.Root, "timestamp": v.Timestamp, "snapshot": v.Snapshot} {
			e.gauge("view_version", "Version of the role in the view served.", float64(n), "role", role)
		}
		e.gauge("view_confirmed_age_seconds", "Since an upstream last said that the view is the newest; if none has, since the start.",
			s.age(v.Confirmed))
		e.gauge("view_changed_age_seconds", "Since the content of the view changed, renewals of the timestamp aside.", s.Now.Sub(v.Changed).Seconds())
		e.gauge("view_objects", "Targets that may be served.", float64(v.Objects))
		e.gauge("view_roles", "Targets roles of the view.", float64(v.Roles))
	}
	for _, r := range s.Roles {
		e.gauge("expiry_seconds", "Until the role expires, negative after that; the top-level roles, and those to expire first: 64 at most.",
			r.Expires.Sub(s.Now).Seconds(), "role", r.Name)
	}
}

func (e exposition) cache(s *Status) {
	c := s.Cache
	e.gauge("cache_bytes", "Bytes of objects in the cache.", float64(c.Bytes))
	e.gauge("cache_objects", "Objects in the cache.", float64(c.Objects))
	e.gauge("cache_max_bytes", "Limit of the cache; 0: none but the disk's.", float64(c.Max))
	e.gauge("cache_reserved_bytes", "Bytes promised to objects that are being written.", float64(c.Reserved))
	e.counter("cache_evicted_total", "Objects that made room for others.", c.Evicted)
	e.gauge("cache_pinned_bytes", "Bytes of objects in the cache that are never evicted.", float64(c.Pinned))
	e.gauge("cache_parts", "Unfinished objects that wait for their fill to go on.", float64(c.Parts))
	e.gauge("cache_part_bytes", "Bytes of unfinished objects that wait for their fill to go on.", float64(c.PartBytes))
	e.gauge("cache_unsure_objects", "Objects that nobody has hashed since an unclean stop.", float64(c.Unsure))
	if c.Free >= 0 {
		e.gauge("disk_free_bytes", "Free bytes of the file system of the cache.", float64(c.Free))
	}
	e.gauge("disk_min_free_bytes", "Bytes of that file system that are to stay free.", float64(c.MinFree))
	e.counter("cache_scrubbed_bytes_total", "Bytes of objects that were read again to find damage.", c.Scrubbed)
	e.counter("cache_damaged_total", "Objects that were found damaged, and thrown away.", c.Damaged)
}

func (e exposition) fills(s *Status, c *counters) {
	f, v := s.Fills, s.Served
	e.counter("hits_total", "Requests for objects that were cached.", v.Hits)
	e.counter("joins_total", "Requests that read along with a fill that another one had begun.", v.Joins)
	e.counter("misses_total", "Requests that began a fill, and got their object.", v.Misses)
	e.gauge("hit_ratio", "Since the start: hits and joins, of hits, joins and misses.", v.HitRatio)
	e.counter("received_bytes_total", "Bytes of objects received from upstreams; from siblings do not count.", v.Received)
	e.counter("saved_bytes_total", "Bytes of objects that clients got and the line did not carry: the most by which sent was ahead of received.", v.Saved)
	e.gauge("saved_ratio", "Since the start: bytes saved, of bytes of objects sent.", v.SavedRatio)
	e.gauge("fills_in_progress", "Fills under way.", float64(f.Transfer))
	e.gauge("fills_queued", "Fills that wait for their turn.", float64(f.Queued))
	e.gauge("waiting_requests", "Requests that wait for a fill or read along with it.", float64(f.Waiting))
	e.counter("fills_total", "Fills by how they ended.", f.Done, "result", "done")
	e.counter("fills_total", "Fills by how they ended.", c.failed.Load(), "result", "failed")
	e.counter("fills_total", "Fills by how they ended.", c.noRoom.Load(), "result", "no_space")
	e.counter("refused_requests_total", "Requests refused since too many were waiting.", f.Refused)
	e.gauge("connections", "Connections of clients that are open.", float64(s.Clients.Connections))
	e.counter("connections_total", "Connections of clients that were accepted.", s.Clients.Accepted)
	if a := s.Clients.Access; a != nil {
		e.gauge("clients", "Clients that the limits for each remember.", float64(a.Clients))
		e.counter("limited_requests_total", "Requests refused since their client had too many.", a.Limited)
		e.counter("denied_requests_total", "Requests refused without the right token or certificate.", a.Denied)
		e.counter("refused_connections_total", "Connections refused since there were too many, of all or of their client.", a.Refused)
		e.counter("access_log_dropped_lines_total", "Lines that the access log could not take in time.", a.Dropped)
	}
	if s.Line != nil && (s.Line.Limit > 0 || s.Line.Paused) {
		e.gauge("line_limit_bytes_per_second", "Limit of what upstreams may send now, if there is one; 0: paused.", float64(s.Line.Limit))
	}
}

func (e exposition) prefill(s *Status) {
	for _, r := range s.Prefill {
		e.gauge("prefill_objects", "Patches that the ring's plan asks for.", float64(r.Objects), "ring", r.Ring)
		e.gauge("prefill_cached_objects", "Patches that the ring's plan asks for and that are cached.", float64(r.Cached), "ring", r.Ring)
		e.gauge("prefill_bytes", "Bytes of the patches that the ring's plan asks for.", float64(r.Bytes), "ring", r.Ring)
		e.gauge("prefill_cached_bytes", "Bytes of the patches that the ring's plan asks for and that are cached.", float64(r.CachedBytes), "ring", r.Ring)
		e.gauge("prefill_warnings", "Warnings of the ring's prefill.", float64(len(r.Warnings)), "ring", r.Ring)
	}
}

func (e exposition) sources(s *Status) {
	for _, u := range s.Upstreams {
		l := []string{"upstream", u.Name}
		e.counter("upstream_errors_total", "Transfers that failed.", u.Errors, l...)
		e.counter("upstream_transfers_total", "Transfers begun.", u.Transfers, l...)
		e.counter("upstream_received_bytes_total", "Bytes of objects received.", u.Bytes, l...)
		e.gauge("upstream_up", "1 if its metadata was usable at the last look.", truth(u.MetadataError == "" && !u.Answered.IsZero()), l...)
		e.gauge("upstream_resting", "1 while it is not asked for objects, since it failed again and again.", truth(u.State == StateResting), l...)
		e.gauge("upstream_answered_age_seconds", "Since its metadata was usable; if it never was, since the start.", s.age(u.Answered), l...)
	}
	for _, u := range s.Siblings {
		l := []string{"sibling", u.Name}
		e.counter("sibling_errors_total", "Transfers that failed.", u.Errors, l...)
		e.counter("sibling_transfers_total", "Transfers begun.", u.Transfers, l...)
		e.counter("sibling_received_bytes_total", "Bytes of objects received.", u.Bytes, l...)
		e.gauge("sibling_resting", "1 while it is not asked for objects, since it failed again and again.", truth(u.State == StateResting), l...)
	}
}
