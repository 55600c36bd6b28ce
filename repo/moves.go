package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// ErrPolicy says that a ring's policy, a halt or a pause forbids what was asked.
var ErrPolicy = errors.New("not allowed")

// Expedite sends a version out to the whole of a ring at once, past its steps
// and windows, and before its time. It needs the ring's signatures, like any
// change of its plan.
func (r *Repository) Expedite(ctx context.Context, product, version, ring, reason string, dryRun bool) (*Change, error) {
	return r.onEntries(ctx, product, version, ring, dryRun, func(e *rollout.Entry) (bool, error) {
		if e.Paused {
			return false, fmt.Errorf("%w: the rollout is paused: resume it first", ErrPolicy)
		}
		if e.Expedite {
			return false, nil
		}
		e.Expedite, e.ExpediteReason = true, reason
		if now := r.moment(); now.Before(e.NotBefore) {
			e.NotBefore = now
		}
		return true, nil
	})
}

// Pause holds a rollout where it is: no machine begins any more. One that is
// paused is ErrExists.
func (r *Repository) Pause(ctx context.Context, product, version, ring, reason string, dryRun bool) (*Change, error) {
	return r.onEntries(ctx, product, version, ring, dryRun, func(e *rollout.Entry) (bool, error) {
		if e.Paused {
			return false, nil
		}
		e.Pause(reason, r.moment())
		return true, nil
	})
}

// Resume lets a paused rollout go on, see rollout.Entry.Resume. One that runs
// is ErrExists.
func (r *Repository) Resume(ctx context.Context, product, version, ring string, catchUp, dryRun bool) (*Change, error) {
	return r.onEntries(ctx, product, version, ring, dryRun, func(e *rollout.Entry) (bool, error) {
		if !e.Paused {
			return false, nil
		}
		e.Resume(catchUp, r.moment())
		return true, nil
	})
}

// onEntries changes what a ring's plan says about the files of a version; edit
// reports whether it did. A version that the ring has not approved is
// fs.ErrNotExist.
func (r *Repository) onEntries(ctx context.Context, product, version, ring string, dryRun bool, edit func(*rollout.Entry) (bool, error)) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		p, err := d.ringPlan(ctx, ring)
		if err != nil {
			return err
		}
		found, changed := false, false
		for i := range p.Entries {
			e := &p.Entries[i]
			if pr, v, _, _, ok := layout.SplitPatchPath(e.Patch); !ok || pr != product || v != version {
				continue
			}
			found = true
			did, err := edit(e)
			if err != nil {
				return fmt.Errorf("%s@%s in ring %s: %w", product, version, ring, err)
			}
			changed = changed || did
		}
		switch {
		case !found:
			return fmt.Errorf("rollout of %s@%s to ring %s: %w", product, version, ring, fs.ErrNotExist)
		case !changed:
			return fmt.Errorf("rollout of %s@%s to ring %s: this %w", product, version, ring, ErrExists)
		}
		return d.putPlan(ctx, p)
	})
}

// Hold says in a ring's plan that it leaves a version as it is for now, and
// why; starting it takes that back. One that is approved already is ErrExists.
func (r *Repository) Hold(ctx context.Context, product, version, ring, reason string, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		p, err := d.ringPlan(ctx, ring)
		if err != nil {
			return err
		}
		list, err := d.versionOf(ctx, product, version)
		if err != nil {
			return err
		}
		for _, pub := range list {
			if p.Entry(pub.Path) != nil {
				return fmt.Errorf("rollout of %s@%s to ring %s %w: pause it", product, version, ring, ErrExists)
			}
			since := r.moment()
			if old := p.Hold(pub.Path); old != nil {
				since = old.Since
			}
			p.Holds = append(release(p.Holds, pub.Path), rollout.Hold{Patch: pub.Path, Since: since, Reason: reason})
		}
		return d.putPlan(ctx, p)
	})
}

func release(holds []rollout.Hold, path string) []rollout.Hold {
	return slices.DeleteFunc(holds, func(h rollout.Hold) bool { return h.Patch == path })
}

// SetMinimumSafe says which version of a product a ring's machines must not
// fall below; they may then go back to it from a newer one that the plan does
// not hold. "" takes that back. The version must be approved in the ring.
func (r *Repository) SetMinimumSafe(ctx context.Context, product, version, ring string, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		p, err := d.ringPlan(ctx, ring)
		if err != nil {
			return err
		}
		if p.MinimumSafe[product] == version {
			return fmt.Errorf("minimum-safe version of %s in ring %s: this %w", product, ring, ErrExists)
		}
		if version == "" {
			delete(p.MinimumSafe, product)
			return d.putPlan(ctx, p)
		}
		approved := slices.ContainsFunc(p.Entries, func(e rollout.Entry) bool {
			pr, v, _, _, ok := layout.SplitPatchPath(e.Patch)
			return ok && pr == product && v == version
		})
		if !approved {
			return fmt.Errorf("rollout of %s@%s to ring %s: %w: machines could not go there", product, version, ring, fs.ErrNotExist)
		}
		if p.MinimumSafe == nil {
			p.MinimumSafe = make(map[string]string)
		}
		p.MinimumSafe[product] = version
		return d.putPlan(ctx, p)
	})
}

// RemoveRollout takes a version out of a ring's plan: it is not approved any
// more. What is installed stays.
func (r *Repository) RemoveRollout(ctx context.Context, product, version, ring string, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		p, err := d.ringPlan(ctx, ring)
		if err != nil {
			return err
		}
		before := len(p.Entries)
		p.Entries = slices.DeleteFunc(p.Entries, func(e rollout.Entry) bool {
			pr, v, _, _, ok := layout.SplitPatchPath(e.Patch)
			return ok && pr == product && v == version
		})
		if len(p.Entries) == before {
			return fmt.Errorf("rollout of %s@%s to ring %s: %w", product, version, ring, fs.ErrNotExist)
		}
		return d.putPlan(ctx, p)
	})
}

// newEntries are the entries of a rollout, under the ring's policy. Files that
// the ring has approved as they are are left out; if that is all of them it is
// ErrExists.
func (d *draft) newEntries(ctx context.Context, ro *Rollout, p *rollout.Plan) ([]rollout.Entry, error) {
	list, err := d.versionOf(ctx, ro.Product, ro.Version)
	if err != nil {
		return nil, err
	}
	policies, err := d.policies(ctx)
	if err != nil {
		return nil, err
	}
	policy := policies.Of(ro.Ring)
	steps := ro.Steps
	if len(steps) == 0 {
		steps = policy.DefaultSteps()
	}
	at := ro.At.UTC().Truncate(time.Second)
	if ro.At.IsZero() {
		at = d.repo.moment()
	}
	var entries []rollout.Entry
	for _, pub := range list {
		if old := p.Entry(pub.Path); old != nil && old.SHA256 == pub.SHA256 && old.Custom == pub.Custom {
			continue
		}
		entries = append(entries, rollout.Entry{
			Patch: pub.Path, SHA256: pub.SHA256, Custom: pub.Custom, NotBefore: at, Steps: steps,
			Windows: ro.Windows, MissedWindow: ro.MissedWindow,
			Deadline: int64(ro.Deadline / time.Second), Grace: int64(ro.Grace / time.Second),
			Expedite: ro.Expedite, ExpediteReason: ro.ExpediteReason,
		})
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("rollout of %s@%s to ring %s %w", ro.Product, ro.Version, ro.Ring, ErrExists)
	}
	return entries, d.maySend(ctx, ro, policy, p, entries)
}

// maySend asks whether the policy lets a version go to a ring. An emergency is
// not held up by the ring before it.
func (d *draft) maySend(ctx context.Context, ro *Rollout, policy rollout.Policy, to *rollout.Plan, entries []rollout.Entry) error {
	from := ro.From
	if from == "" {
		from = policy.After
	}
	if from == "" || ro.Expedite {
		return nil
	}
	if from == ro.Ring {
		return fmt.Errorf("%w: ring %s cannot take it over from itself", ErrPolicy, from)
	}
	before, err := d.ringPlan(ctx, from)
	if err != nil {
		return err
	}
	halts, err := d.halts(ctx)
	if err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		there := before.Entry(e.Patch)
		if there == nil || there.SHA256 != e.SHA256 || there.Custom != e.Custom {
			return fmt.Errorf("%w: ring %s takes what ring %s has had, and that has not approved %s", ErrPolicy, ro.Ring, from, e.Patch)
		}
		for j := range halts.Halts {
			h := &halts.Halts[j]
			if h.Matches(ro.Product, e.SHA256) && !(slices.Contains(before.Lifts, h.ID) && slices.Contains(to.Lifts, h.ID)) {
				return fmt.Errorf("%w: %s@%s is halted (%s): %s", ErrPolicy, ro.Product, ro.Version, h.ID, h.Reason)
			}
		}
		if _, err := policy.Soaked(there, d.repo.moment()); err != nil {
			return fmt.Errorf("%w: %s@%s in ring %s: %w", ErrPolicy, ro.Product, ro.Version, from, err)
		}
	}
	return nil
}

// Preview returns the plan's entries for a version as they are, or as a rollout
// would make them, and what stands in its way (ErrPolicy), if anything does.
func (r *Repository) Preview(ctx context.Context, ro Rollout) (entries []rollout.Entry, approved bool, obstacle, err error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, false, nil, err
	}
	d := r.draftOn(base)
	p, err := d.ringPlan(ctx, ro.Ring)
	if err != nil {
		return nil, false, nil, err
	}
	entries, err = d.newEntries(ctx, &ro, p)
	switch {
	case errors.Is(err, ErrPolicy):
		return entries, false, err, nil
	case !errors.Is(err, ErrExists):
		return entries, false, nil, err
	}
	list, err := d.versionOf(ctx, ro.Product, ro.Version)
	if err != nil {
		return nil, false, nil, err
	}
	for _, pub := range list {
		e := *p.Entry(pub.Path) // newEntries has seen it
		if len(ro.Steps) > 0 {
			e.Steps = ro.Steps
		}
		if !ro.At.IsZero() {
			e.NotBefore = ro.At.UTC()
		}
		entries = append(entries, e)
	}
	halts, err := d.halts(ctx)
	if err != nil {
		return nil, false, nil, err
	}
	for i := range entries {
		for j := range halts.Halts {
			if h := &halts.Halts[j]; h.Matches(ro.Product, entries[i].SHA256) && !slices.Contains(p.Lifts, h.ID) {
				return entries, true, fmt.Errorf("%w: it is halted (%s): %s", ErrPolicy, h.ID, h.Reason), nil
			}
		}
	}
	return entries, true, nil, nil
}

// RingStatus is a ring's plan, and how far each rollout of it is.
type RingStatus struct {
	*rollout.Plan
	Rollouts   []RolloutStatus `json:"rollouts"`
	ApprovedBy []string        `json:"approved_by"` // key ids under the plan in force
	Threshold  int             `json:"threshold"`
}

// RolloutState says in a word where a rollout stands.
type RolloutState string

// The states.
const (
	NotBegun  RolloutState = "not-begun"
	Running   RolloutState = "running"
	Complete  RolloutState = "complete"
	Paused    RolloutState = "paused"
	Halted    RolloutState = "halted"
	Withdrawn RolloutState = "withdrawn" // by its product, or replaced: nobody installs it
)

// RolloutStatus is how far one patch has come in a ring.
type RolloutStatus struct {
	Patch   string          `json:"patch"` // id
	Path    string          `json:"path"`
	Product string          `json:"product"`
	Version string          `json:"version"`
	State   RolloutState    `json:"state"`
	Reason  string          `json:"reason,omitempty"` // of a pause, a halt, or an emergency
	Since   time.Time       `json:"since"`            // when the state began, as far as it is signed
	Share   rollout.Percent `json:"share"`            // of the ring that the steps let in now
	Next    *NextStep       `json:"next,omitempty"`
	Ends    time.Time       `json:"ends,omitzero"` // when everyone is in, as it stands
	Left    int64           `json:"left"`          // seconds until then
	Halts   []string        `json:"halts"`         // ids of those that stop it here
	Change  string          `json:"change,omitempty"`
}

// NextStep is when more machines come in.
type NextStep struct {
	At      time.Time       `json:"at"`
	Percent rollout.Percent `json:"percent"`
	Ramp    bool            `json:"ramp,omitempty"` // the share grows until then
}

// Status reads the plan of every ring, and says how far each rollout is.
func (r *Repository) Status(ctx context.Context) ([]RingStatus, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	d := r.draftOn(base)
	halts, err := d.halts(ctx)
	if err != nil {
		return nil, err
	}
	products := make(map[string][]Published)
	list := []RingStatus{}
	for _, del := range base.delegations() {
		ring, ok := layout.RingOfRole(del.Name)
		if !ok {
			continue
		}
		p, err := d.readPlan(ctx, ring)
		if err != nil {
			return nil, err
		}
		md, err := base.role(ctx, del.Name)
		if err != nil {
			return nil, err
		}
		rs := RingStatus{Plan: p, Rollouts: []RolloutStatus{}, ApprovedBy: signersOf(md, del.KeyIDs), Threshold: del.Threshold}
		for i := range p.Entries {
			product, _, _, _, _ := layout.SplitPatchPath(p.Entries[i].Patch)
			if _, ok := products[product]; !ok {
				products[product], err = d.published(ctx, product)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return nil, err
				}
			}
			rs.Rollouts = append(rs.Rollouts, statusOf(p, &p.Entries[i], halts.Halts, products[product], r.moment()))
		}
		list = append(list, rs)
	}
	return list, nil
}

func statusOf(p *rollout.Plan, e *rollout.Entry, halts []rollout.Halt, published []Published, now time.Time) RolloutStatus {
	product, version, platform, _, _ := layout.SplitPatchPath(e.Patch)
	s := RolloutStatus{
		Patch: patch.MakeID(product, version, platform), Path: e.Patch, Product: product, Version: version, Change: e.Change,
		State: Running, Since: e.NotBefore, Share: e.Share(now), Halts: []string{},
	}
	if next := e.NextStep(now); next != nil {
		s.Next = &NextStep{At: e.NotBefore.Add(time.Duration(next.At) * time.Second), Percent: next.Percent, Ramp: next.Ramp}
	}
	if e.Expedite {
		s.Reason = e.ExpediteReason
	}
	if ends, ok := e.Complete(); ok {
		s.Ends = ends
		s.Left = max(0, int64(ends.Sub(now)/time.Second))
		if s.Left == 0 && !now.Before(ends) {
			s.State, s.Since = Complete, ends
		}
	}
	if now.Before(e.NotBefore) {
		s.State = NotBegun
	}
	if e.Paused {
		s.State, s.Since, s.Reason = Paused, e.PausedSince, e.PausedReason
	}
	for i := range halts {
		if h := &halts[i]; h.Matches(product, e.SHA256) && !slices.Contains(p.Lifts, h.ID) {
			if len(s.Halts) == 0 {
				s.State, s.Since, s.Reason = Halted, h.Since, h.Reason
			}
			s.Halts = append(s.Halts, h.ID)
		}
	}
	here := slices.ContainsFunc(published, func(pub Published) bool {
		return pub.Path == e.Patch && pub.SHA256 == e.SHA256 && pub.Custom == e.Custom
	})
	if !here {
		s.State, s.Reason = Withdrawn, "its product does not vouch for it any more"
	}
	if s.State != Running && s.State != NotBegun {
		s.Next = nil
	}
	return s
}
