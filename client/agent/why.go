package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// Explanation answers "why is this patch installed here, or why not?".
type Explanation struct {
	Ref       string `json:"ref"`
	Ring      string `json:"ring"`
	MachineID string `json:"machine_id"`
	Note      string `json:"note,omitempty"` // why the answer may be old
	Items     []Item `json:"items"`          // newest version first; never empty
}

// Why traces the decision on "<product>" or "<product>@<version>". It answers
// from the last verified state when there is no fresh one, and from the last
// report while another agent is at work; Note says so.
func (a *Agent) Why(ctx context.Context, ref string) (*Explanation, error) {
	product, version, found := strings.Cut(ref, "@")
	if err := layout.CheckName(product); err != nil {
		return nil, fmt.Errorf("%w: %q is neither PRODUCT nor PRODUCT@VERSION", patch.ErrBad, ref)
	}
	if found {
		if _, _, err := patch.ParseRef(ref); err != nil {
			return nil, err
		}
	}
	x := &Explanation{Ref: ref, Ring: a.config.Ring, MachineID: a.config.MachineID}
	rep, halts, err := a.lookAgain(ctx)
	switch {
	case rep == nil && err != nil:
		return nil, err
	case err != nil:
		x.Note = err.Error()
	}
	for _, it := range rep.Patches {
		if it.Product == product && (version == "" || it.Version == version) {
			x.Items = append(x.Items, it)
		}
	}
	slices.SortStableFunc(x.Items, func(a, b Item) int {
		if a.patch != nil {
			return -a.patch.Compare(a.Version, b.Version)
		}
		return -patch.CompareVersions(a.Version, b.Version)
	})
	if len(x.Items) == 0 {
		x.Items = []Item{a.unplanned(product, version, rep, halts)}
	}
	return x, nil
}

// lookAgain checks, or falls back to the last report; the error says why that
// is old.
func (a *Agent) lookAgain(ctx context.Context) (*Report, []rollout.Halt, error) {
	rep, err := a.Check(ctx)
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	if rep == nil && err != nil {
		rep = a.lastReport(err)
	}
	if rep == nil {
		return nil, nil, err
	}
	if err != nil {
		at := rep.Time
		if !rep.Verified.IsZero() {
			at = rep.Verified
		}
		err = fmt.Errorf("this is how it stood at %s: %w", at.Format("2006-01-02 15:04:05 MST"), err)
	}
	halts, herr := a.readHalts()
	if herr != nil {
		return nil, nil, herr
	}
	return rep, halts, err
}

// unplanned explains a patch that the ring's plan does not hold.
func (a *Agent) unplanned(product, version string, rep *Report, halts []rollout.Halt) Item {
	it := Item{Product: product, Version: version, State: StateRefused}
	var plan *rollout.Plan
	if !rep.NoPlan {
		plan = &rollout.Plan{Format: rollout.Format, Ring: a.config.Ring}
	}
	d := rollout.Decide(rollout.Device{ID: a.config.MachineID, Ring: a.config.Ring},
		rollout.State{Plan: plan, Halts: halts}, rollout.Candidate{Product: product}, a.opts.Now())
	it.Trace, it.Why = d.Trace, d.Why()
	if last := d.Trace[len(d.Trace)-1]; last.Name == "halt" {
		it.State = StateHalted
	}
	return it
}
