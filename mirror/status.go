package mirror

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/mirror/access"
	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/fill"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	// maxRolesShown bounds the roles in a Status: those that expire first.
	maxRolesShown = 64

	// maxRolesNamed bounds the roles that are warned of by name, for each kind
	// of warning.
	maxRolesNamed = 4

	// maxErrorShown bounds what is shown of an error, in bytes: an upstream may
	// have chosen its words.
	maxErrorShown = 300

	// maxPrefillShown bounds the warnings of prefill among those of the mirror.
	maxPrefillShown = 8

	// lately is how long a failure that may be over is warned of.
	lately = 10 * time.Minute
)

// Status is what /readyz answers, as JSON.
type Status struct {
	Ready     bool             `json:"ready"`              // fit to serve
	Reasons   []string         `json:"reasons,omitempty"`  // why not
	Warnings  []string         `json:"warnings,omitempty"` // fit, but somebody should look
	Now       time.Time        `json:"now"`                // by the mirror's clock
	Started   time.Time        `json:"started"`
	View      *ViewStatus      `json:"view,omitempty"`  // absent before the first
	Roles     []RoleStatus     `json:"roles,omitempty"` // the first to expire first; top-level ones, and at most 64 in all
	Cache     cache.Stats      `json:"cache"`
	Fills     fill.Stats       `json:"fills"`
	Served    Served           `json:"served"`
	Clients   ClientStatus     `json:"clients"`
	Line      *LineStatus      `json:"line,omitempty"`    // absent without a calendar
	Prefill   []PrefillStatus  `json:"prefill,omitempty"` // of the rings that are prefilled, by name
	Progress  []fill.Progress  `json:"progress,omitempty"`
	Upstreams []UpstreamStatus `json:"upstreams"`
	Siblings  []SiblingStatus  `json:"siblings,omitempty"`
}

// ViewStatus describes the view that is served.
type ViewStatus struct {
	Root      int64     `json:"root"` // versions
	Timestamp int64     `json:"timestamp"`
	Snapshot  int64     `json:"snapshot"`
	Roles     int       `json:"roles"`              // targets and delegated ones
	Objects   int       `json:"objects"`            // names of targets
	Since     time.Time `json:"since"`              // when it was verified
	Changed   time.Time `json:"changed"`            // when its content was new, renewals of the timestamp aside
	Confirmed time.Time `json:"confirmed,omitzero"` // when an upstream last said that it is the newest; zero: not since the start
}

// RoleStatus is one role of the view.
type RoleStatus struct {
	Name    string    `json:"name"`
	Version int64     `json:"version"`
	Expires time.Time `json:"expires"`
}

// SourceState says in a word how an upstream or a sibling is.
type SourceState string

// The states, the worst that applies.
const (
	StateUnknown SourceState = "unknown" // not asked yet
	StateUp      SourceState = "up"
	StateFailing SourceState = "failing" // its last transfer failed
	StateResting SourceState = "resting" // it failed again and again, and is left alone for a while
	StateDown    SourceState = "down"    // its metadata cannot be used
)

// UpstreamStatus is one upstream.
type UpstreamStatus struct {
	fill.SourceStats
	State         SourceState `json:"state"`
	Answered      time.Time   `json:"answered,omitzero"` // last time its metadata was usable
	MetadataError string      `json:"metadata_error,omitempty"`
}

// SiblingStatus is one sibling, which is asked for objects only.
type SiblingStatus struct {
	fill.SourceStats
	State SourceState `json:"state"`
}

// ClientStatus is about who is connected.
type ClientStatus struct {
	Connections int64         `json:"connections"`      // open
	Accepted    int64         `json:"accepted"`         // since the start
	Access      *access.Stats `json:"access,omitempty"` // what the limits have counted since the start; absent without any
}

// LineStatus is what the calendar says now.
type LineStatus struct {
	Limit  int64 `json:"limit"`            // bytes/s; 0: none
	Paused bool  `json:"paused,omitempty"` // nothing may come
}

// Status tells how the mirror is.
//
// It is not ready while it has nothing to serve, and once a top-level role has
// expired: then clients refuse what it serves, and a load balancer had better
// send them elsewhere. All else is a warning. A mirror whose line is down serves
// what it has, which is what it is there for.
func (m *Mirror) Status() Status {
	s := Status{
		Now: m.cfg.Now(), Started: m.seen.started,
		Cache: m.cache.Stats(), Fills: m.filler.Stats(), Progress: m.filler.InProgress(),
		Prefill: m.prefillStatus(),
	}
	s.Clients.Accepted = m.seen.accepted.Load()
	s.Clients.Connections = s.Clients.Accepted - m.seen.closed.Load()
	if l, ok := m.cfg.Line.(interface{ Rate() int64 }); ok {
		rate := l.Rate()
		s.Line = &LineStatus{Limit: max(rate, 0), Paused: rate < 0}
	}
	if m.cfg.Access != nil {
		a := m.cfg.Access.Stats()
		s.Clients.Access = &a
	}
	confirmed := m.addSources(&s)
	m.addView(&s, confirmed)
	m.addTroubles(&s)
	s.addPrefill()
	s.Ready = len(s.Reasons) == 0
	return s
}

func (s *Status) reason(format string, args ...any) {
	s.Reasons = append(s.Reasons, fmt.Sprintf(format, args...))
}

func (s *Status) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}

// addSources adds upstreams and siblings, and returns when one of the upstreams
// last answered.
func (m *Mirror) addSources(s *Status) (confirmed time.Time) {
	m.mu.Lock()
	polls := slices.Clone(m.polls)
	m.mu.Unlock()
	var received int64
	for i, src := range m.filler.Sources() {
		src.LastError = short(src.LastError)
		state := sourceState(src, s.Now)
		if src.Sibling {
			s.Siblings = append(s.Siblings, SiblingStatus{src, state})
			if state == StateResting {
				s.warn("sibling %s is left alone until %s: %s", src.Name, stamp(src.RestsTill), src.LastError)
			}
			continue
		}
		received += src.Bytes
		u := UpstreamStatus{SourceStats: src, State: state, Answered: polls[i].answered}
		switch err := polls[i].err; {
		case err != nil:
			u.MetadataError, u.State = short(err.Error()), StateDown
			s.warn("upstream %s: no usable metadata %s: %s", u.Name, since(u.Answered), u.MetadataError)
		case u.Answered.IsZero():
			u.State = StateUnknown
		case state == StateUnknown:
			u.State = StateUp
		case state != StateUp && s.Now.Sub(src.FailedAt) < lately:
			s.warn("upstream %s: transfers fail: %s", u.Name, src.LastError)
		}
		if u.Answered.After(confirmed) {
			confirmed = u.Answered
		}
		s.Upstreams = append(s.Upstreams, u)
	}
	s.Served = m.seen.served(received)
	return confirmed
}

// sourceState is what transfers say.
func sourceState(src fill.SourceStats, now time.Time) SourceState {
	switch {
	case now.Before(src.RestsTill):
		return StateResting
	case src.LastError != "":
		return StateFailing
	case src.Transfers > 0:
		return StateUp
	}
	return StateUnknown
}

func (m *Mirror) addView(s *Status, confirmed time.Time) {
	v := m.shown.Load().current()
	if v == nil {
		s.reason("no verified view of the repository yet")
		return
	}
	if s.Now.Sub(confirmed) > 3*m.cfg.Poll {
		s.warn("no upstream has answered %s", since(confirmed))
	}
	s.View = &ViewStatus{v.root, v.timestamp, v.snapshot, len(v.roles), len(v.objects), v.verified, v.begun, confirmed}
	roles := v.expiries()
	expired, soon := rolesNamed{s: s}, rolesNamed{s: s}
	for _, r := range roles {
		left := r.Expires.Sub(s.Now)
		switch {
		case left > maxSoon:
		case left > 0:
			if left < m.seen.soon(v, r) {
				soon.warn("role %s expires at %s, in %s", r.Name, stamp(r.Expires), left.Truncate(time.Second))
			}
		case isTop(r.Name):
			s.reason("role %s expired at %s", r.Name, stamp(r.Expires))
		default:
			expired.warn("role %s expired at %s", r.Name, stamp(r.Expires))
		}
	}
	expired.rest("have expired")
	soon.rest("expire soon")
	if len(roles) > maxRolesShown {
		tops := slices.DeleteFunc(slices.Clone(roles[maxRolesShown:]), func(r RoleStatus) bool { return !isTop(r.Name) })
		roles = append(slices.Clone(roles[:maxRolesShown-len(tops)]), tops...)
	}
	s.Roles = roles
}

// rolesNamed warns of the first few roles by name.
type rolesNamed struct {
	s *Status
	n int
}

func (l *rolesNamed) warn(format string, args ...any) {
	if l.n++; l.n <= maxRolesNamed {
		l.s.warn(format, args...)
	}
}

func (l *rolesNamed) rest(what string) {
	if more := l.n - maxRolesNamed; more > 0 {
		l.s.warn("%d more roles %s", more, what)
	}
}

// addTroubles adds what the disk and the cache have to say.
func (m *Mirror) addTroubles(s *Status) {
	m.seen.mu.Lock()
	noSpace, view := m.seen.noSpace, m.seen.view
	m.seen.mu.Unlock()
	if view.err != nil {
		s.warn("the view cannot be kept on the disk since %s, a restart would serve an older one: %s", stamp(view.since), short(view.err.Error()))
	}
	if c := s.Cache; c.Free >= 0 && c.Free < c.MinFree {
		s.warn("the disk has %d bytes free, and %d are to stay free: objects make room, and new ones are refused", c.Free, c.MinFree)
	}
	if n := s.Cache.Unsure; n > 0 {
		s.warn("the last run did not end cleanly: %d objects are hashed again before their next use", n)
	}
	if n := s.Cache.Damaged; n > 0 {
		s.warn("%d damaged objects were found in the cache since the start, and thrown away: look at the disk", n)
	}
	if a := s.Clients.Access; a != nil && a.Dropped > 0 {
		s.warn("%d lines of the access log were lost: its disk is too slow", a.Dropped)
	}
	if noSpace.err != nil && s.Now.Sub(noSpace.last) < lately {
		s.warn("objects cannot be cached since %s, last at %s: %s", stamp(noSpace.since), stamp(noSpace.last), short(noSpace.err.Error()))
	}
}

// addPrefill adds what the rings have to say, once: they share their halts.
func (s *Status) addPrefill() {
	seen := map[string]bool{}
	for i := range s.Prefill {
		for j, w := range s.Prefill[i].Warnings {
			w = short(w)
			s.Prefill[i].Warnings[j] = w
			if !seen[w] && len(seen) < maxPrefillShown {
				seen[w] = true
				s.warn("%s", w)
			}
		}
	}
}

const (
	// maxSoon bounds how early the expiry of a role is warned of.
	maxSoon = 30 * 24 * time.Hour

	// lifetimeField is in the signed part of a role: for how long a version of it
	// is to be valid, as time.ParseDuration reads it.
	lifetimeField = "x-patchkeep-lifetime"
)

// soon is how long before a role's expiry it is warned of: a quarter of its
// lifetime, where renewal is due at a third.
func (c *counters) soon(v *view, r RoleStatus) time.Duration {
	name, usual := urlName(r.Name, r.Version), 365*24*time.Hour
	switch r.Name {
	case layout.RoleTimestamp:
		name, usual = layout.TimestampName, 48*time.Hour
	case layout.RoleSnapshot:
		usual = 30 * 24 * time.Hour
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(c.lives.of(v, name, func(d *doc) time.Duration {
		if life, ok := lifetime(d.body); ok {
			return life
		}
		return min(usual, r.Expires.Sub(v.verified)) // what there was left when it was first seen
	})/4, maxSoon)
}

// lives are the lifetimes of the documents of a view, so that each is parsed
// once.
type lives struct {
	view  *view
	known map[string]life // by name in the URL
}

type life struct {
	doc *doc
	d   time.Duration
}

// of returns the lifetime of a document, which find finds.
func (l *lives) of(v *view, name string, find func(*doc) time.Duration) time.Duration {
	if l.view != v {
		old := l.known
		l.view, l.known = v, map[string]life{}
		for name, o := range old {
			if v.docs[name] == o.doc {
				l.known[name] = o
			}
		}
	}
	known, ok := l.known[name]
	if !ok {
		known.doc = v.docs[name]
		known.d = find(known.doc)
		l.known[name] = known
	}
	return known.d
}

func lifetime(body []byte) (time.Duration, bool) {
	var md struct {
		Signed map[string]json.RawMessage `json:"signed"`
	}
	var s string
	if json.Unmarshal(body, &md) != nil || json.Unmarshal(md.Signed[lifetimeField], &s) != nil {
		return 0, false
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d > 0
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func since(t time.Time) string {
	if t.IsZero() {
		return "since this mirror was started"
	}
	return "since " + stamp(t)
}

// short cuts an error that nobody wants to read to its end.
func short(s string) string {
	if len(s) <= maxErrorShown {
		return s
	}
	return strings.ToValidUTF8(s[:maxErrorShown], "") + "…"
}

func isTop(role string) bool {
	switch role {
	case layout.RoleRoot, layout.RoleTimestamp, layout.RoleSnapshot, layout.RoleTargets:
		return true
	}
	return false
}

// expiries lists all roles, the first to expire first, top-level ones before
// others that expire with them.
func (v *view) expiries() []RoleStatus {
	out := make([]RoleStatus, 0, len(v.roles)+3)
	for name, version := range map[string]int64{layout.RoleRoot: v.root, layout.RoleTimestamp: v.timestamp, layout.RoleSnapshot: v.snapshot} {
		out = append(out, RoleStatus{name, version, v.tops[name]})
	}
	for _, r := range v.roles {
		out = append(out, RoleStatus{r.name, r.version, r.expires})
	}
	slices.SortFunc(out, func(a, b RoleStatus) int {
		return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(rank(a.Name), rank(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func rank(role string) int {
	if isTop(role) {
		return 0
	}
	return 1
}

// serveReady answers 200 or 503, and the Status with it.
func (m *Mirror) serveReady(w http.ResponseWriter, _ *http.Request) {
	label(w, "readyz")
	s := m.Status()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !s.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(s)
}
