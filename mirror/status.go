package mirror

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/fill"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// maxRolesShown bounds the roles in a Status: those that expire first.
const maxRolesShown = 64

// Status is what /readyz answers, as JSON.
type Status struct {
	Ready     bool             `json:"ready"`              // fit to serve
	Reasons   []string         `json:"reasons,omitempty"`  // why not
	Warnings  []string         `json:"warnings,omitempty"` // fit, but somebody should look
	View      *ViewStatus      `json:"view,omitempty"`     // absent before the first
	Roles     []RoleStatus     `json:"roles,omitempty"`    // the first to expire first; top-level ones, and at most 64 in all
	Cache     cache.Stats      `json:"cache"`
	Fills     fill.Stats       `json:"fills"`
	Progress  []fill.Progress  `json:"progress,omitempty"`
	Upstreams []UpstreamStatus `json:"upstreams"`
}

// ViewStatus describes the view that is served.
type ViewStatus struct {
	Root      int64     `json:"root"` // versions
	Timestamp int64     `json:"timestamp"`
	Snapshot  int64     `json:"snapshot"`
	Roles     int       `json:"roles"`   // targets and delegated ones
	Objects   int       `json:"objects"` // names of targets
	Since     time.Time `json:"since"`   // when it was verified
}

// RoleStatus is one role of the view.
type RoleStatus struct {
	Name    string    `json:"name"`
	Version int64     `json:"version"`
	Expires time.Time `json:"expires"`
}

// UpstreamStatus is one upstream.
type UpstreamStatus struct {
	fill.SourceStats
	Answered      time.Time `json:"answered,omitzero"` // last time its metadata was usable
	MetadataError string    `json:"metadata_error,omitempty"`
}

// Status tells how the mirror is.
func (m *Mirror) Status() Status {
	now := m.cfg.Now()
	s := Status{Cache: m.cache.Stats(), Fills: m.filler.Stats(), Progress: m.filler.InProgress()}
	m.mu.Lock()
	polls := slices.Clone(m.polls)
	m.mu.Unlock()
	var last time.Time
	for i, src := range m.filler.Sources() {
		u := UpstreamStatus{SourceStats: src, Answered: polls[i].answered}
		if err := polls[i].err; err != nil {
			u.MetadataError = err.Error()
			s.Warnings = append(s.Warnings, fmt.Sprintf("upstream %s: %v", src.Name, err))
		}
		if u.Answered.After(last) {
			last = u.Answered
		}
		s.Upstreams = append(s.Upstreams, u)
	}
	v := m.shown.Load().current()
	if v == nil {
		s.Reasons = append(s.Reasons, "no verified view of the repository yet")
		return s
	}
	if now.Sub(last) > 3*m.cfg.Poll {
		since := "since this mirror was started"
		if !last.IsZero() {
			since = "since " + last.UTC().Format(time.RFC3339)
		}
		s.Warnings = append(s.Warnings, "no upstream has answered "+since)
	}
	s.View = &ViewStatus{v.root, v.timestamp, v.snapshot, len(v.roles), len(v.objects), v.verified}
	s.Roles = v.expiries()
	for _, r := range s.Roles {
		if now.Before(r.Expires) {
			break
		}
		what := fmt.Sprintf("role %s expired at %s", r.Name, r.Expires.UTC().Format(time.RFC3339))
		if isTop(r.Name) {
			s.Reasons = append(s.Reasons, what)
		} else {
			s.Warnings = append(s.Warnings, what)
		}
	}
	s.Ready = len(s.Reasons) == 0
	if len(s.Roles) > maxRolesShown {
		s.Roles = slices.DeleteFunc(s.Roles, func(r RoleStatus) bool {
			return !isTop(r.Name) && r.Expires.After(s.Roles[maxRolesShown-5].Expires)
		})
		s.Roles = s.Roles[:min(len(s.Roles), maxRolesShown)]
	}
	return s
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
