package mirror

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// counters count requests. All else that /metrics shows is read from Status
// when it is asked for, so that the two never disagree.
type counters struct {
	requests *prometheus.CounterVec
	sent     *prometheus.CounterVec
	hits     prometheus.Counter
	misses   prometheus.Counter
}

func newCounters() *counters {
	return &counters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "patchkeep_mirror_requests_total",
			Help: "Requests answered; 499: the client left before.",
		}, []string{"route", "code"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "patchkeep_mirror_sent_bytes_total",
			Help: "Bytes of bodies sent to clients.",
		}, []string{"route"}),
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "patchkeep_mirror_hits_total",
			Help: "Requests for objects that were cached.",
		}),
		misses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "patchkeep_mirror_misses_total",
			Help: "Requests for objects that waited for a fill, and got it.",
		}),
	}
}

func (c *counters) request(w *responseWriter) {
	w.begin()
	code := "200"
	if w.code != 200 {
		code = strconv.Itoa(w.code)
	}
	c.requests.WithLabelValues(w.route, code).Inc()
	c.sent.WithLabelValues(w.route).Add(float64(w.sent))
}

func (c *counters) object(hit bool) {
	if hit {
		c.hits.Inc()
	} else {
		c.misses.Inc()
	}
}

// registry is this mirror's own: two of them in one process do not mix.
func (m *Mirror) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.seen.requests, m.seen.sent, m.seen.hits, m.seen.misses, statusCollector{m})
	return r
}

// statusCollector turns a Status into metrics.
type statusCollector struct{ m *Mirror }

// Describe sends nothing: which roles and upstreams there are is seen later.
func (statusCollector) Describe(chan<- *prometheus.Desc) {}

func (c statusCollector) Collect(out chan<- prometheus.Metric) {
	s, now := c.m.Status(), c.m.cfg.Now()
	send := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("patchkeep_mirror_"+name, help, names, nil), kind, v, values...)
	}
	gauge := func(name, help string, v float64, labels ...string) {
		send(prometheus.GaugeValue, name, help, v, labels...)
	}
	counter := func(name, help string, v float64, labels ...string) {
		send(prometheus.CounterValue, name, help, v, labels...)
	}
	ready := 0.0
	if s.Ready {
		ready = 1
	}
	gauge("ready", "1 if /readyz says so.", ready)
	if v := s.View; v != nil {
		gauge("view_version", "Version of the role in the view served.", float64(v.Timestamp), "role", "timestamp")
		gauge("view_version", "Version of the role in the view served.", float64(v.Snapshot), "role", "snapshot")
		gauge("view_version", "Version of the role in the view served.", float64(v.Root), "role", "root")
		gauge("view_age_seconds", "Since the view served was verified.", now.Sub(v.Since).Seconds())
		gauge("view_objects", "Targets that may be served.", float64(v.Objects))
	}
	for _, r := range s.Roles {
		gauge("expiry_seconds", "Until the role expires; the first 64 to do so.", r.Expires.Sub(now).Seconds(), "role", r.Name)
	}
	gauge("cache_bytes", "Bytes of objects in the cache.", float64(s.Cache.Bytes))
	gauge("cache_objects", "Objects in the cache.", float64(s.Cache.Objects))
	gauge("cache_max_bytes", "Limit of the cache; 0: none.", float64(s.Cache.Max))
	counter("cache_evicted_total", "Objects that made room for others.", float64(s.Cache.Evicted))
	gauge("fills_in_progress", "Transfers from upstream under way.", float64(s.Fills.Transfer))
	gauge("fills_queued", "Objects that wait for a transfer.", float64(s.Fills.Queued))
	gauge("waiting_requests", "Requests that wait for an object.", float64(s.Fills.Waiting))
	counter("fills_total", "Transfers by how they ended.", float64(s.Fills.Done), "result", "done")
	counter("fills_total", "Transfers by how they ended.", float64(s.Fills.Failed), "result", "failed")
	counter("refused_requests_total", "Requests refused since too many were waiting.", float64(s.Fills.Refused))
	counter("received_bytes_total", "Bytes of objects received from upstreams.", float64(s.Fills.BytesIn))
	for _, u := range s.Upstreams {
		counter("upstream_errors_total", "Failed transfers.", float64(u.Errors), "upstream", u.Name)
		counter("upstream_transfers_total", "Transfers begun.", float64(u.Transfers), "upstream", u.Name)
		up := 0.0
		if u.MetadataError == "" && !u.Answered.IsZero() {
			up = 1
		}
		gauge("upstream_up", "1 if its metadata was usable at the last look.", up, "upstream", u.Name)
	}
}
