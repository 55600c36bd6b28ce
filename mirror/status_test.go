package mirror_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/access"
	"github.com/patchkeep/patchkeep/mirror/line"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

// everything makes a mirror have all that it can tell of.
func everything(s *site) {
	sibling := overDir(s.t, s.dir)
	sibling.name = "sibling"
	calendar, err := line.ParseCalendar("*=1GB/s")
	must(s.t, err)
	s.cfg.Siblings, s.cfg.Self = []upstream.Upstream{sibling}, "self"
	s.cfg.Line = line.NewLimiter(calendar, nil)
	s.cfg.PrefillRings = []string{"users"}
	s.cfg.Access = access.New(access.Rules{Requests: 1e6}, nil)
}

// readyz is what /readyz answers.
func (s *site) readyz() (code int, st mirror.Status) {
	s.t.Helper()
	resp, body := s.get("/readyz")
	must(s.t, json.Unmarshal(body, &st))
	return resp.StatusCode, st
}

// TestReadyz: what makes a mirror unfit, and what is a warning only.
func TestReadyz(t *testing.T) {
	at := func(s *site, d time.Duration) {
		now := time.Now().Add(d)
		s.now.Store(&now)
	}
	expiring := func(role string, after time.Duration) func(s *site) {
		return func(s *site) {
			s.publish(func(r *tuftest.Repo) {
				r.Delegate("targets", tuftest.Delegation{Role: "mirrors", Paths: []string{"mirrors/*"}})
				when := time.Now().UTC().Add(after).Truncate(time.Second)
				switch role {
				case "timestamp":
					r.Timestamp.Signed.Expires = when
				case "snapshot":
					r.Snapshot.Signed.Expires = when
				default:
					r.Targets[role].Signed.Expires = when
				}
			})
			must(s.t, s.m.Refresh(s.t.Context()))
		}
	}
	for _, c := range []struct {
		name     string
		do       func(s *site)
		ready    bool
		reasons  []string
		warnings []string
	}{
		{"fresh", func(*site) {}, true, nil, nil},
		{"line down for an hour", func(s *site) {
			s.up.down.Store(true)
			at(s, time.Hour)
			if s.m.Refresh(s.t.Context()) == nil {
				s.t.Error("there is no line")
			}
		}, true, nil, []string{"upstream dir: no usable metadata since ", "no upstream has answered since "}},
		{"line is back", func(s *site) {
			s.up.down.Store(true)
			_ = s.m.Refresh(s.t.Context())
			s.up.down.Store(false)
			must(s.t, s.m.Refresh(s.t.Context()))
		}, true, nil, nil},
		{"nobody looks", func(s *site) { at(s, time.Hour) }, true, nil, []string{"no upstream has answered since "}},
		{"timestamp has expired", func(s *site) {
			expiring("timestamp", 48*time.Hour)(s)
			at(s, 49*time.Hour)
		}, false, []string{"role timestamp expired at "}, []string{"no upstream has answered since "}},
		{"timestamp in its last quarter", func(s *site) {
			expiring("timestamp", 48*time.Hour)(s)
			at(s, 37*time.Hour)
			must(s.t, s.m.Refresh(s.t.Context()))
		}, true, nil, []string{"role timestamp expires at "}},
		{"timestamp in its third quarter", func(s *site) {
			expiring("timestamp", 48*time.Hour)(s)
			at(s, 35*time.Hour)
			must(s.t, s.m.Refresh(s.t.Context()))
		}, true, nil, nil},
		{"the lifetime that is signed counts", func(s *site) {
			s.publish(func(r *tuftest.Repo) {
				r.Timestamp.Signed.Expires = time.Now().UTC().Add(2 * time.Hour).Truncate(time.Second)
				r.Timestamp.Signed.UnrecognizedFields = map[string]any{"x-patchkeep-lifetime": "12h"}
			})
			must(s.t, s.m.Refresh(s.t.Context()))
		}, true, nil, []string{"role timestamp expires at "}},
		{"a delegated role has expired", expiring("mirrors", -time.Hour), true, nil, []string{"role mirrors expired at "}},
		{"wrong bytes upstream", func(s *site) {
			s.up.onTarget(func(_ string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
				return struct {
					io.Reader
					io.Closer
				}{io.LimitReader(zeros{}, size), body}, size, nil
			})
			if resp, _ := s.get(urlOf(patchB, bytesB)); resp.StatusCode != http.StatusBadGateway {
				s.t.Errorf("status %d", resp.StatusCode)
			}
		}, true, nil, []string{"upstream dir: transfers fail: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			c.do(s)
			code, st := s.readyz()
			if st.Ready != c.ready || (code == http.StatusOK) != c.ready {
				t.Errorf("status %d, ready %v", code, st.Ready)
			}
			for what, l := range map[string][2][]string{"reasons": {st.Reasons, c.reasons}, "warnings": {st.Warnings, c.warnings}} {
				got, want := l[0], l[1]
				if len(got) != len(want) {
					t.Errorf("%s: %q, want %q", what, got, want)
					continue
				}
				for i := range want {
					if !strings.HasPrefix(got[i], want[i]) {
						t.Errorf("%s: %q, want %q", what, got, want)
					}
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestReadyzBeforeTheFirstView: there is a reason, and all else that is known.
func TestReadyzBeforeTheFirstView(t *testing.T) {
	s := newSite(t)
	s.stop()
	s.up.down.Store(true)
	s.cfg.Dir = t.TempDir()
	s.start()
	if s.m.Refresh(t.Context()) == nil {
		t.Fatal("there is no line")
	}
	code, st := s.readyz()
	if code != http.StatusServiceUnavailable || st.View != nil || !contains(st.Reasons, "no verified view") ||
		!contains(st.Warnings, "since this mirror was started") || st.Upstreams[0].State != mirror.StateDown {
		t.Errorf("%d %+v", code, st)
	}
}

// TestStatusIsBounded: neither many roles nor an upstream's words make it long.
func TestStatusIsBounded(t *testing.T) {
	s := newSite(t)
	s.publish(func(r *tuftest.Repo) {
		for i := range 300 {
			role := fmt.Sprintf("product-%d", i)
			r.Delegate("targets", tuftest.Delegation{Role: role, Paths: []string{"patches/" + role + "/*/*/*"}})
			r.Targets[role].Signed.Expires = time.Now().UTC().Add(time.Duration(i-100) * time.Minute).Truncate(time.Second)
			r.Targets[role].Signed.UnrecognizedFields = map[string]any{"x-patchkeep-lifetime": "24h"}
		}
	})
	must(t, s.m.Refresh(t.Context()))
	s.up.onMetadata(func(string, []byte, error) ([]byte, error) {
		return nil, errors.New(strings.Repeat("<html>", 10_000))
	})
	if s.m.Refresh(t.Context()) == nil {
		t.Fatal("there is no answer")
	}
	now := time.Now().Add(90 * time.Second)
	s.now.Store(&now)
	code, st := s.readyz()
	if code != http.StatusOK || len(st.Warnings) > 12 || len(st.Roles) != 64 {
		t.Errorf("status %d, %d roles, warnings %q", code, len(st.Roles), st.Warnings)
	}
	if !contains(st.Warnings, "more roles have expired") || !contains(st.Warnings, "more roles expire soon") {
		t.Errorf("warnings %q", st.Warnings)
	}
	tops := 0
	for i, r := range st.Roles {
		switch r.Name {
		case "root", "timestamp", "snapshot", "targets":
			tops++
		}
		if i > 0 && r.Expires.Before(st.Roles[i-1].Expires) {
			t.Errorf("role %s expires before the one above it", r.Name)
		}
	}
	if tops != 4 {
		t.Errorf("%d of the top-level roles", tops)
	}
	for _, w := range st.Warnings {
		if len(w) > 500 {
			t.Errorf("a warning of %d bytes", len(w))
		}
	}
}

// TestMetricsLint: the names, types and texts are as Prometheus wants them.
func TestMetricsLint(t *testing.T) {
	s := newSite(t, everything)
	s.run(t)
	s.want(patchA, bytesA)
	_, body := s.get("/metrics")
	problems, err := promlint.New(bytes.NewReader(body)).Lint()
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestPrefillIsSaid: what a ring lacks is a warning, and does not make the mirror
// unfit.
func TestPrefillIsSaid(t *testing.T) {
	s := newSite(t, everything)
	s.run(t)
	code, st := s.readyz()
	if code != http.StatusOK || len(st.Prefill) != 1 || st.Prefill[0].Ring != "users" || len(st.Prefill[0].Warnings) == 0 {
		t.Fatalf("%d %+v", code, st.Prefill)
	}
	if !contains(st.Warnings, st.Prefill[0].Warnings[0]) {
		t.Errorf("warnings %q", st.Warnings)
	}
	if got := s.metric(`prefill_warnings{ring="users"}`); got != float64(len(st.Prefill[0].Warnings)) {
		t.Errorf("prefill_warnings: %v", got)
	}
}

// run keeps Run running until the test ends, and waits until it has looked at
// the rings.
func (s *site) run(t *testing.T) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.m.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	until(t, "a look at the rings", func() bool { return len(s.m.Status().Prefill) > 0 })
}

// metric reads one time series of /metrics, 0 if there is none.
func (s *site) metric(series string) (v float64) {
	s.t.Helper()
	_, body := s.get("/metrics")
	m := regexp.MustCompile(`(?m)^patchkeep_mirror_` + regexp.QuoteMeta(series) + ` (.+)$`).FindSubmatch(body)
	if m != nil {
		_, err := fmt.Sscan(string(m[1]), &v)
		must(s.t, err)
	}
	return v
}

// TestSaved: what clients got and the line did not carry. Bytes from siblings
// are not from the line.
func TestSaved(t *testing.T) {
	s := newSite(t)
	for i := range 4 {
		s.want(patchA, bytesA)
		if got, want := s.metric("saved_bytes_total"), float64(i*len(bytesA)); got != want {
			t.Errorf("after %d: %v bytes saved, want %v", i+1, got, want)
		}
	}
	if got := s.metric("saved_ratio"); got != 0.75 {
		t.Errorf("saved ratio %v", got)
	}
	if got := s.metric("hit_ratio"); got != 0.75 {
		t.Errorf("hit ratio %v", got)
	}
	// It does not shrink when something comes in that nobody has yet.
	before := s.metric("saved_bytes_total")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.srv.URL+urlOf(patchB, bytesB), nil)
	must(t, err)
	req.Header.Set("Range", "bytes=0-0")
	resp, err := s.srv.Client().Do(req)
	must(t, err)
	resp.Body.Close()
	if after := s.metric("saved_bytes_total"); after < before {
		t.Errorf("saved bytes went from %v to %v", before, after)
	}
}

// TestSiblingsAreNotUpstreams: they are told of apart.
func TestSiblingsAreNotUpstreams(t *testing.T) {
	s := newSite(t, everything)
	for i := range 20 { // some of them belong to the sibling
		path := fmt.Sprintf("patches/app/3.%d/any/f", i)
		data := content(path, 1000)
		s.publish(func(r *tuftest.Repo) { r.AddArtifact("product-app", path, data) })
		must(t, s.m.Refresh(t.Context()))
		s.want(path, data)
	}
	_, st := s.readyz()
	if len(st.Upstreams) != 1 || len(st.Siblings) != 1 || st.Upstreams[0].State != mirror.StateUp || st.Siblings[0].State != mirror.StateUp {
		t.Fatalf("upstreams %+v, siblings %+v", st.Upstreams, st.Siblings)
	}
	up, sibling := st.Upstreams[0].Bytes, st.Siblings[0].Bytes
	if up == 0 || sibling == 0 || up+sibling != 20_000 || st.Served.Received != up || st.Served.Saved != sibling {
		t.Errorf("%d bytes from the upstream, %d from the sibling: %+v", up, sibling, st.Served)
	}
	if st.Line == nil || st.Line.Limit != 1_000_000_000 || s.metric("line_limit_bytes_per_second") != 1e9 {
		t.Errorf("line: %+v", st.Line)
	}
}

// TestLabelsAreBounded: whatever strangers ask for, and however they ask, adds
// no time series.
func TestLabelsAreBounded(t *testing.T) {
	s := newSite(t)
	count := func() int {
		_, body := s.get("/metrics")
		return strings.Count(string(body), "\npatchkeep_mirror_")
	}
	ask := func(i int) {
		for _, path := range []string{"/%d", "/targets/%d", "/metadata/%d.root.json", "/metadata/%d", "/readyz/%d", "/targets/%d?a=b"} {
			s.get(fmt.Sprintf(path, i))
			s.do(http.MethodPost, fmt.Sprintf(path, i))
		}
	}
	s.get("/metrics")
	s.get("/readyz")
	ask(1)
	before := count()
	for i := range 20 {
		ask(i + 100)
	}
	if after := count(); after != before {
		t.Errorf("%d time series became %d", before, after)
	}
	s.get("/healthz")
	for _, route := range []string{"healthz", "readyz", "metrics", "targets", "metadata", "other"} {
		if s.metric(`sent_bytes_total{route="`+route+`"}`) == 0 {
			t.Errorf("route %s is not counted", route)
		}
	}
}

// TestConnState: who is connected is counted.
func TestConnState(t *testing.T) {
	s := newSite(t)
	for _, state := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateNew, http.StateActive, http.StateClosed, http.StateNew, http.StateHijacked} {
		s.m.ConnState(&net.TCPConn{}, state)
	}
	if c := s.m.Status().Clients; c.Connections != 1 || c.Accepted != 3 {
		t.Errorf("%+v", c)
	}
	if got := s.metric("connections"); got != 1 {
		t.Errorf("connections: %v", got)
	}
}

// TestStatusOfTwoUpstreams: each is told of by itself.
func TestStatusOfTwoUpstreams(t *testing.T) {
	s := newSite(t, func(s *site) {
		second := overDir(s.t, s.dir)
		second.name = "second"
		second.down.Store(true)
		s.cfg.Upstreams = []upstream.Upstream{s.up, second}
	})
	code, st := s.readyz()
	if code != http.StatusOK || len(st.Upstreams) != 2 || st.Upstreams[0].State != mirror.StateUp || st.Upstreams[1].State != mirror.StateDown {
		t.Errorf("%d %+v", code, st.Upstreams)
	}
	if !contains(st.Warnings, "upstream second") || contains(st.Warnings, "no upstream") || st.View.Confirmed.IsZero() {
		t.Errorf("warnings %q, view %+v", st.Warnings, st.View)
	}
	if s.metric(`upstream_up{upstream="dir"}`) != 1 || s.metric(`upstream_up{upstream="second"}`) != 0 {
		t.Error("upstream_up")
	}
}

// TestHitsJoinsMisses: one begins the fill, others read along, later ones find
// the object; how long they waited and the fill took is measured.
func TestHitsJoinsMisses(t *testing.T) {
	s := newSite(t)
	g := newGate(s.up)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { s.want(patchA, bytesA) })
	}
	until(t, "all clients waiting", func() bool { return s.m.Status().Fills.Waiting == 5 })
	close(g.open)
	wg.Wait()
	until(t, "the end of the fill", func() bool { return s.m.Status().Fills.Done == 1 })
	s.want(patchA, bytesA)
	if v := s.m.Status().Served; v.Misses != 1 || v.Joins != 4 || v.Hits != 1 {
		t.Errorf("%+v", v)
	}
	for series, want := range map[string]float64{
		"hits_total": 1, "joins_total": 4, "misses_total": 1,
		"first_byte_wait_seconds_count": 5, "fill_duration_seconds_count": 1,
		`fills_total{result="done"}`: 1, `fills_total{result="failed"}`: 0,
	} {
		if got := s.metric(series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
}

// TestNoSpaceIsSaid: a cache that cannot take an object is a warning for a
// while, and told apart from an upstream that fails.
func TestNoSpaceIsSaid(t *testing.T) {
	s := newSite(t, func(s *site) { s.cfg.CacheSize = 1000 })
	if resp, _ := s.get(urlOf(patchA, bytesA)); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d", resp.StatusCode)
	}
	code, st := s.readyz()
	if code != http.StatusOK || len(st.Warnings) != 1 || !contains(st.Warnings, "objects cannot be cached since ") {
		t.Errorf("%d %q", code, st.Warnings)
	}
	if s.metric(`fills_total{result="no_space"}`) != 1 || s.metric(`fills_total{result="failed"}`) != 0 {
		t.Error("fills_total")
	}
	now := time.Now().Add(11 * time.Minute)
	s.now.Store(&now)
	must(t, s.m.Refresh(t.Context()))
	if _, st := s.readyz(); len(st.Warnings) > 0 {
		t.Errorf("eleven minutes later: %q", st.Warnings)
	}
}

// TestUncleanStopIsSaid: until all that it left has been hashed again.
func TestUncleanStopIsSaid(t *testing.T) {
	s := newSite(t)
	s.want(patchA, bytesA)
	until(t, "the object in the cache", func() bool { return s.m.Status().Cache.Objects == 1 })
	s.stop()
	for _, f := range s.files("cas") {
		if filepath.Dir(filepath.Dir(f)) != filepath.FromSlash("cas/sha256") { // what says that all was well
			must(t, os.Remove(filepath.Join(s.cfg.Dir, f)))
		}
	}
	s.start()
	must(t, s.m.Refresh(t.Context()))
	if _, st := s.readyz(); !st.Ready || !contains(st.Warnings, "did not end cleanly: 1 object") {
		t.Errorf("warnings %q", st.Warnings)
	}
	s.want(patchA, bytesA)
	if _, st := s.readyz(); len(st.Warnings) > 0 {
		t.Errorf("warnings %q", st.Warnings)
	}
}

// TestFullDiskIsSaid: also while nobody asks for anything.
func TestFullDiskIsSaid(t *testing.T) {
	s := newSite(t, func(s *site) { s.cfg.MinFree = 1 << 60 })
	if _, st := s.readyz(); !st.Ready || !contains(st.Warnings, "the disk has ") {
		t.Errorf("warnings %q", st.Warnings)
	}
}

// TestViewNotKept: a view that cannot be written to the disk is a warning, until
// one can.
func TestViewNotKept(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.cfg.Dir, "metadata")
	must(t, os.Rename(dir, dir+".away"))
	s.publish(addPatch(1))
	_ = s.m.Refresh(t.Context())
	if _, st := s.readyz(); !contains(st.Warnings, "cannot be kept on the disk since ") || !st.Ready {
		t.Errorf("warnings %q", st.Warnings)
	}
	must(t, os.Rename(dir+".away", dir))
	s.publish(addPatch(2))
	must(t, s.m.Refresh(t.Context()))
	if _, st := s.readyz(); len(st.Warnings) > 0 {
		t.Errorf("warnings %q", st.Warnings)
	}
}
