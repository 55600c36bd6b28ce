package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// delegations lists what targets delegates to.
func (s *state) delegations() []metadata.DelegatedRole {
	if del := s.trusted.Targets[layout.RoleTargets].Signed.Delegations; del != nil {
		return del.Roles
	}
	return nil
}

// readPlan reads a ring's plan as the draft has it; fs.ErrNotExist if there is no
// such ring.
func (d *draft) readPlan(ctx context.Context, ring string) (*rollout.Plan, error) {
	data, err := d.document(ctx, layout.RingRole(ring), layout.PlanPath(ring), rollout.MaxPlanSize)
	if err != nil {
		return nil, err
	}
	if data == nil {
		return &rollout.Plan{Format: rollout.Format, Ring: ring, Entries: []rollout.Entry{}}, nil
	}
	return rollout.ParsePlan(data)
}

func (d *draft) putPlan(ctx context.Context, p *rollout.Plan) error {
	data, err := p.Encode()
	if err != nil {
		return err
	}
	return d.putDocument(ctx, layout.RingRole(p.Ring), layout.PlanPath(p.Ring), data)
}

func (d *draft) halts(ctx context.Context) (*rollout.Halts, error) {
	data, err := d.document(ctx, layout.RoleHalt, layout.HaltsPath, rollout.MaxHaltsSize)
	if err != nil {
		return nil, err
	}
	if data == nil {
		return &rollout.Halts{Format: rollout.Format, Halts: []rollout.Halt{}}, nil
	}
	return rollout.ParseHalts(data)
}

func (d *draft) putHalts(ctx context.Context, h *rollout.Halts) error {
	data, err := h.Encode()
	if err != nil {
		return err
	}
	return d.putDocument(ctx, layout.RoleHalt, layout.HaltsPath, data)
}

// approval is what a ring approves: a path with a content and a description.
type approval struct{ path, sha256, custom string }

// approvals maps each approved patch to the rings that approve it.
func (d *draft) approvals(ctx context.Context) (map[approval][]string, error) {
	rings := make(map[approval][]string)
	for _, del := range d.base.delegations() {
		ring, ok := layout.RingOfRole(del.Name)
		if !ok {
			continue
		}
		p, err := d.readPlan(ctx, ring)
		if err != nil {
			return nil, err
		}
		for _, e := range p.Entries {
			a := approval{e.Patch, e.SHA256, e.Custom}
			rings[a] = append(rings[a], ring)
		}
	}
	return rings, nil
}

// Rollout says how a patch goes to a ring's machines.
type Rollout struct {
	Product, Version string
	Ring             string
	At               time.Time      // zero: now
	Steps            []rollout.Step // none: those of the ring's policy, or everyone at once

	// Windows, if any, are when machines install it, MissedWindow what those do
	// that were away. Deadline is counted from discovery, Grace from there.
	Windows         []rollout.Window
	MissedWindow    rollout.MissedWindow
	Deadline, Grace time.Duration

	// From is the ring that it must have been in before, as the policy of Ring
	// says. "": the policy's own, if it names one.
	From string

	// Expedite is for emergencies: past steps, windows and the ring before.
	Expedite       bool
	ExpediteReason string
}

// StartRollout has a ring approve all files of a version, each with its
// content. A version that the ring has approved already is ErrExists; an
// unknown ring is ErrUnknownRing, an unknown patch fs.ErrNotExist; what the
// ring's policy forbids is ErrPolicy.
func (r *Repository) StartRollout(ctx context.Context, ro Rollout, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		p, err := d.ringPlan(ctx, ro.Ring)
		if err != nil {
			return err
		}
		entries, err := d.newEntries(ctx, &ro, p)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if old := p.Entry(e.Patch); old != nil {
				*old = e // withdrawn, and published again with other content
			} else {
				p.Entries = append(p.Entries, e)
			}
			p.Holds = release(p.Holds, e.Patch)
		}
		return d.putPlan(ctx, p)
	})
}

func (d *draft) ringPlan(ctx context.Context, ring string) (*rollout.Plan, error) {
	if err := layout.CheckName(ring); err != nil {
		return nil, fmt.Errorf("ring: %w", err)
	}
	if !slices.Contains(d.base.rings(), ring) {
		return nil, fmt.Errorf("%w %s (there are %s)", ErrUnknownRing, ring, strings.Join(d.base.rings(), ", "))
	}
	return d.readPlan(ctx, ring)
}

func (s *state) rings() []string {
	var rings []string
	for _, del := range s.delegations() {
		if ring, ok := layout.RingOfRole(del.Name); ok {
			rings = append(rings, ring)
		}
	}
	return rings
}

// Plans reads the plan of every ring.
func (r *Repository) Plans(ctx context.Context) ([]*rollout.Plan, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	d := r.draftOn(base)
	plans := []*rollout.Plan{}
	for _, ring := range base.rings() {
		p, err := d.readPlan(ctx, ring)
		if err != nil {
			return nil, err
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// HaltScope is what a halt stops.
type HaltScope struct {
	Product string // "": everything
	Version string // "": all versions of the product
}

// AddHalt stops patches. It needs one halt key.
func (r *Repository) AddHalt(ctx context.Context, scope HaltScope, reason, by string, dryRun bool) ([]rollout.Halt, *Change, error) {
	var added []rollout.Halt
	change, err := r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		h, err := d.halts(ctx)
		if err != nil {
			return err
		}
		added, err = d.newHalts(ctx, scope, reason, by)
		if err != nil {
			return err
		}
		h.Halts = append(h.Halts, added...)
		return d.putHalts(ctx, h)
	})
	return added, change, err
}

func (d *draft) newHalts(ctx context.Context, scope HaltScope, reason, by string) ([]rollout.Halt, error) {
	halt := func() rollout.Halt {
		return rollout.Halt{ID: newHaltID(d.repo.moment()), Since: d.repo.moment(), Reason: reason, By: by}
	}
	h := halt()
	switch {
	case scope.Product == "":
		h.All = true
		return []rollout.Halt{h}, nil
	case scope.Version == "":
		if _, err := d.read(ctx, layout.ProductRole(scope.Product)); err != nil {
			return nil, unknownProduct(scope.Product, err)
		}
		h.Product = scope.Product
		return []rollout.Halt{h}, nil
	}
	list, err := d.versionOf(ctx, scope.Product, scope.Version)
	if err != nil {
		return nil, err
	}
	var halts []rollout.Halt
	seen := make(map[string]bool)
	for _, pub := range list {
		if !seen[pub.SHA256] { // the same file may serve several platforms
			seen[pub.SHA256] = true
			h := halt()
			h.SHA256 = pub.SHA256
			halts = append(halts, h)
		}
	}
	return halts, nil
}

func newHaltID(at time.Time) string {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return "h" + at.Format("20060102-150405") + "-" + hex.EncodeToString(b[:])
}

// LiftHalts lets the given rings, or all if none are named, go on in spite of
// halts. It needs each ring's threshold. The halts stay listed.
func (r *Repository) LiftHalts(ctx context.Context, ids, rings []string, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		h, err := d.halts(ctx)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if !slices.ContainsFunc(h.Halts, func(h rollout.Halt) bool { return h.ID == id }) {
				return fmt.Errorf("halt %s: %w", id, fs.ErrNotExist)
			}
		}
		if len(rings) == 0 {
			rings = d.base.rings()
		}
		lifted := false
		for _, ring := range rings {
			p, err := d.ringPlan(ctx, ring)
			if err != nil {
				return err
			}
			before := len(p.Lifts)
			for _, id := range ids {
				if !slices.Contains(p.Lifts, id) {
					p.Lifts = append(p.Lifts, id)
				}
			}
			if len(p.Lifts) == before {
				continue
			}
			lifted = true
			if err := d.putPlan(ctx, p); err != nil {
				return err
			}
		}
		if !lifted {
			return fmt.Errorf("lift of %v %w", ids, ErrExists)
		}
		return nil
	})
}

// HaltStatus is a halt, and the rings that go on in spite of it.
type HaltStatus struct {
	rollout.Halt
	Lifted  []string `json:"lifted"`
	Patches []string `json:"patches"` // published patches that it stops, by id
}

// Halts lists the halts, oldest first.
func (r *Repository) Halts(ctx context.Context) ([]HaltStatus, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	d := r.draftOn(base)
	h, err := d.halts(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]HaltStatus, len(h.Halts))
	for i := range h.Halts {
		list[i] = HaltStatus{Halt: h.Halts[i], Lifted: []string{}, Patches: []string{}}
	}
	for _, ring := range base.rings() {
		p, err := d.readPlan(ctx, ring)
		if err != nil {
			return nil, err
		}
		for i := range list {
			if slices.Contains(p.Lifts, list[i].ID) {
				list[i].Lifted = append(list[i].Lifted, ring)
			}
		}
	}
	for _, del := range base.delegations() {
		product, ok := layout.ProductOfRole(del.Name)
		if !ok {
			continue
		}
		pubs, err := d.published(ctx, product)
		if err != nil {
			return nil, err
		}
		for i := range list {
			for _, pub := range pubs {
				if list[i].Matches(product, pub.SHA256) {
					list[i].Patches = append(list[i].Patches, pub.Patch.ID)
				}
			}
		}
	}
	return list, nil
}

// ParseScope reads what a halt stops: P@V, a product, or "*".
func ParseScope(s string) (HaltScope, error) {
	if s == "*" {
		return HaltScope{}, nil
	}
	if err := layout.CheckName(s); err == nil {
		return HaltScope{Product: s}, nil
	}
	product, version, err := patch.ParseRef(s)
	if err != nil {
		return HaltScope{}, fmt.Errorf("%q is neither PRODUCT@VERSION, nor PRODUCT, nor '*': %w", s, patch.ErrBad)
	}
	return HaltScope{Product: product, Version: version}, nil
}
