package repo

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/repo/inventory"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// More states, of patches that a ring has not approved.
const (
	NotStarted RolloutState = "not-started"
	Held       RolloutState = "held"
)

// NoReason is the reason of a state that somebody chose and did not explain.
const NoReason = "no reason given"

// Exposure says which machines lack which patch.
type Exposure struct {
	Moment       time.Time `json:"moment"`
	Machines     int       `json:"machines"`      // in the inventory
	UnknownRings []string  `json:"unknown_rings"` // in the inventory, not in the repository
	NoRing       int       `json:"no_ring"`       // machines of which no ring is said
	Missing      []Missing `json:"missing"`       // severest first, then the longest
}

// Missing is a patch that machines of a ring lack.
type Missing struct {
	Ring     string          `json:"ring"`
	Patch    string          `json:"patch"` // id
	Title    string          `json:"title,omitempty"`
	Severity patch.Severity  `json:"severity,omitempty"`
	CVEs     []string        `json:"cves"`
	Released time.Time       `json:"released"`
	State    RolloutState    `json:"state"`
	Since    time.Time       `json:"since"`            // when the state began
	Share    rollout.Percent `json:"share"`            // of the ring that may install it now
	Reason   string          `json:"reason,omitempty"` // signed, or NoReason where one is owed
	Covered  string          `json:"covered_by,omitempty"`
	Lacking  int             `json:"lacking"` // machines that have an older version
	Of       int             `json:"of"`      // machines that have the product
	IDs      []string        `json:"machine_ids"`

	product string
}

// Exposure compares an inventory with what is published. A machine lacks a
// patch if an older version of its product is installed there. A machine on
// which the product is not installed lacks nothing of it.
func (r *Repository) Exposure(ctx context.Context, rows []inventory.Row) (*Exposure, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	d := r.draftOn(base)
	halts, err := d.halts(ctx)
	if err != nil {
		return nil, err
	}
	x := &Exposure{Moment: r.moment(), UnknownRings: []string{}, Missing: []Missing{}}
	rings := base.rings()
	type where struct{ ring, product string }
	installed := make(map[where][]*inventory.Row)
	seen := make(map[string]bool)
	for i := range rows {
		row := &rows[i]
		if !seen[row.Machine] {
			seen[row.Machine] = true
			if row.Ring == "" {
				x.NoRing++
			} else if !slices.Contains(rings, row.Ring) && !slices.Contains(x.UnknownRings, row.Ring) {
				x.UnknownRings = append(x.UnknownRings, row.Ring)
			}
		}
		if row.Ring != "" && row.Product != "" && row.Version != "" {
			at := where{row.Ring, row.Product}
			installed[at] = append(installed[at], row)
		}
	}
	x.Machines = len(seen)
	slices.Sort(x.UnknownRings)
	plans := make(map[string]*rollout.Plan)
	products := make(map[string][]Published)
	for _, at := range slices.SortedFunc(maps.Keys(installed), func(a, b where) int {
		return cmp.Or(strings.Compare(a.ring, b.ring), strings.Compare(a.product, b.product))
	}) {
		if _, ok := plans[at.ring]; !ok {
			plans[at.ring] = &rollout.Plan{Ring: at.ring}
			if slices.Contains(rings, at.ring) {
				if plans[at.ring], err = d.readPlan(ctx, at.ring); err != nil {
					return nil, err
				}
			}
		}
		if _, ok := products[at.product]; !ok {
			products[at.product], err = d.published(ctx, at.product)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		for i := range products[at.product] {
			m := missingOn(&products[at.product][i], installed[at])
			if m.Lacking > 0 {
				m.Ring = at.ring
				m.stand(&products[at.product][i], plans[at.ring], halts.Halts, products[at.product], x.Moment)
				x.Missing = append(x.Missing, m)
			}
		}
	}
	slices.SortStableFunc(x.Missing, func(a, b Missing) int {
		return cmp.Or(cmp.Compare(severities[b.Severity], severities[a.Severity]), a.Released.Compare(b.Released), strings.Compare(a.Ring, b.Ring))
	})
	return x, nil
}

var severities = map[patch.Severity]int{patch.SeverityLow: 1, patch.SeverityModerate: 2, patch.SeverityImportant: 3, patch.SeverityCritical: 4}

// missingOn counts the machines that lack a patch.
func missingOn(pub *Published, installed []*inventory.Row) Missing {
	p := pub.Patch
	m := Missing{
		Patch: p.ID, Title: p.Title, Severity: p.Severity, CVEs: append([]string{}, p.CVEs...), Released: p.Released, IDs: []string{},
		product: p.Product,
	}
	older := make(map[string]bool) // thousands of machines have few versions
	for _, row := range installed {
		if !Fits(p.Platform, row.Platform) {
			continue
		}
		m.Of++
		is, known := older[row.Version]
		if !known {
			is = p.Compare(row.Version, p.Version) < 0
			older[row.Version] = is
		}
		if is {
			m.Lacking++
			m.IDs = append(m.IDs, row.Machine)
		}
	}
	slices.Sort(m.IDs)
	return m
}

// Fits reports whether a patch for a platform may be for a machine of another;
// of one of which no platform is said it may.
func Fits(patchPlatform, machine string) bool {
	os, arch := patch.SplitPlatform(patchPlatform)
	mOS, mArch := patch.SplitPlatform(machine)
	return (os == "" || mOS == "" || os == mOS) && (arch == "" || mArch == "" || arch == mArch)
}

// stand says where the ring stands with the patch, and why.
func (m *Missing) stand(pub *Published, plan *rollout.Plan, halts []rollout.Halt, published []Published, now time.Time) {
	if e := plan.Entry(pub.Path); e != nil {
		s := statusOf(plan, e, halts, published, now)
		m.State, m.Since, m.Share, m.Reason = s.State, s.Since, s.Share, s.Reason
		if m.Reason == "" && (s.State == Paused || s.State == Halted) {
			m.Reason = NoReason
		}
		return
	}
	m.State, m.Since, m.Reason = NotStarted, m.Released, NoReason
	if h := plan.Hold(pub.Path); h != nil {
		m.State, m.Since = Held, h.Since
		m.Reason = cmp.Or(h.Reason, NoReason)
	}
	// A newer version that the ring has approved brings this one's mending too.
	for i := range plan.Entries {
		e := &plan.Entries[i]
		product, version, platform, _, _ := layout.SplitPatchPath(e.Patch)
		if product == m.product && Fits(pub.Patch.Platform, platform) && pub.Patch.Compare(version, pub.Patch.Version) > 0 &&
			statusOf(plan, e, halts, published, now).State != Withdrawn {
			m.Covered = product + "@" + version
		}
	}
}
