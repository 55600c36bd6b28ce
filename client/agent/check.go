package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// Check refreshes the metadata and looks at each patch in the ring's plan.
//
// If the metadata cannot be refreshed, the error says why, and the report, if
// there is one, is about the last verified state: nothing in it is offered.
func (a *Agent) Check(ctx context.Context) (*Report, error) {
	s, err := a.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer s.end()
	return s.check(ctx)
}

func (s *session) check(ctx context.Context) (*Report, error) {
	trouble := s.client.Refresh(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	rep, err := s.evaluate(ctx, trouble)
	if err != nil && trouble == nil {
		return nil, err
	}
	if trouble != nil {
		trouble = fmt.Errorf("refresh metadata: %w", trouble)
		if err != nil {
			rep = s.lastReport(trouble)
		}
		return rep, trouble
	}
	if s.ready {
		if err := s.noteLook(rep.Time); err != nil {
			return nil, fmt.Errorf("note this look: %w", err)
		}
	}
	if err := writeJSON(s.path(reportFile), rep); err != nil {
		return nil, fmt.Errorf("keep report: %w", err)
	}
	return rep, nil
}

// lastReport is the report of the last good check, nil if there was none, for
// when the metadata cannot even be looked at. Nothing in it is offered.
func (a *Agent) lastReport(trouble error) *Report {
	var rep *Report
	if err := readJSON(a.path(reportFile), &rep); err != nil || rep == nil || rep.Ring != a.config.Ring || rep.MachineID != a.config.MachineID {
		return nil
	}
	rep.Fresh, rep.Problem = false, trouble.Error()
	for _, it := range rep.In(StateOffered) {
		if i := slices.IndexFunc(it.Trace, func(c rollout.Check) bool { return c.Name == "fresh" }); i >= 0 {
			it.Trace = it.Trace[:i]
		}
		it.no(StateStale, "fresh", staleWords(trouble))
	}
	return rep
}

func staleWords(trouble error) string { return "the metadata is not fresh: " + trouble.Error() }

// evaluation is one look at all patches.
type evaluation struct {
	*session
	rep      *Report
	plan     *rollout.Plan
	halts    []rollout.Halt
	seen     map[string]time.Time
	looked   []time.Time // see looks
	known    map[string]install.Known
	now      time.Time
	found    map[string]string  // installed versions, by product
	failing  map[string]error   // of those that could not be found out
	underWay map[string]*Record // by product
	trouble  error              // why the metadata is not fresh
}

// evaluate looks at each patch by the verified metadata that there is.
func (s *session) evaluate(ctx context.Context, trouble error) (*Report, error) {
	now := s.opts.Now()
	e := &evaluation{
		session: s, now: now, trouble: trouble, found: map[string]string{}, failing: map[string]error{},
		rep: &Report{Time: now, Ring: s.config.Ring, MachineID: s.config.MachineID, Fresh: trouble == nil, Patches: []Item{}, Damaged: s.damaged()},
	}
	st := s.client.Status()
	for _, r := range st.Roles {
		if r.SignedAt.After(e.rep.Verified) {
			e.rep.Verified = r.SignedAt
		}
	}
	if trouble != nil {
		e.rep.Problem = trouble.Error()
	}
	var err error
	if e.plan, err = s.client.Plan(ctx, s.config.Ring); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the plan of ring %s: %w", s.config.Ring, err)
	}
	published, err := s.client.Halts(ctx)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the halts: %w", err)
	}
	if e.halts, err = s.allHalts(published, e.plan); err != nil {
		return nil, err
	}
	if e.plan == nil {
		e.rep.NoPlan = true
		return e.rep, nil
	}
	if e.seen, err = s.firstSeen(e.plan, now); err != nil {
		return nil, err
	}
	if e.looked, err = s.looks(now); err != nil {
		return nil, err
	}
	if e.known, err = s.installed(); err != nil {
		return nil, err
	}
	for i := range e.plan.Entries {
		it, err := e.signed(ctx, &e.plan.Entries[i])
		if err != nil {
			return nil, err
		}
		e.rep.Patches = append(e.rep.Patches, it)
	}
	records, _, err := s.journal.all()
	if err != nil {
		return nil, err
	}
	e.underWay = map[string]*Record{}
	for _, r := range records {
		if !r.final() {
			e.underWay[r.Patch.Product] = r
		}
	}
	for i := range e.rep.Patches {
		it := &e.rep.Patches[i]
		if it.State == "" {
			e.applicable(ctx, it)
		}
		if err := e.journalled(it); err != nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := e.arrange(); err != nil {
		return nil, err
	}
	e.hold(ctx)
	return e.rep, nil
}

func (it *Item) yes(name, why string) {
	it.Trace = append(it.Trace, rollout.Check{Name: name, OK: true, Why: why})
}

func (it *Item) no(state State, name, why string) {
	it.Trace = append(it.Trace, rollout.Check{Name: name, Why: why})
	it.State, it.Why = state, why
}

// signed asks what the signatures say: is the patch what its product's role
// vouches for, and is it approved for this machine now? A state that is left
// empty means yes.
func (e *evaluation) signed(ctx context.Context, entry *rollout.Entry) (Item, error) {
	it := Item{Path: entry.Patch, SHA256: entry.SHA256}
	it.Product, it.Version, it.Platform, _, _ = layout.SplitPatchPath(entry.Patch)
	p, t, err := e.client.Patch(ctx, entry.Patch)
	switch {
	case ctx.Err() != nil:
		return it, context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist):
		it.no(StateRefused, "product", fmt.Sprintf("nobody who may sign for %s vouches for it: it was withdrawn, or never published", it.Product))
	case errors.Is(err, tuf.ErrOffline):
		it.no(StateStale, "product", "what its product says about it cannot be fetched: "+err.Error())
	case err != nil:
		it.no(StateRefused, "product", "its product does not vouch for it: "+err.Error())
	}
	if err != nil {
		it.err = err
		return it, nil //nolint:nilerr // it is in the item: the other patches are looked at all the same
	}
	it.patch = p
	it.Title, it.Severity, it.Kind, it.Length = p.Title, p.Severity, p.Kind, t.Length
	it.yes("product", fmt.Sprintf("role %s, version %d, vouches for it", t.Role, t.RoleVersion))

	custom, err := patch.Digest(t.Custom)
	if err != nil {
		it.no(StateRefused, "product", "its product does not vouch for it: "+err.Error())
		it.err = err
		return it, nil //nolint:nilerr // it is in the item
	}
	first := e.seen[entry.SHA256+" "+entry.Patch]
	state := rollout.State{Plan: e.plan, Halts: e.halts, FirstSeen: first, Looks: e.looked}
	if !e.asked {
		set := e.Settings()
		state.Windows, state.MissedWindow = set.Windows, set.MissedWindow
	}
	d := rollout.Decide(
		rollout.Device{ID: e.config.MachineID, Ring: e.config.Ring},
		state,
		rollout.Candidate{Path: entry.Patch, SHA256: t.SHA256, Custom: custom, Product: p.Product}, e.now)
	it.Trace = append(it.Trace, d.Trace...)
	it.Deadline, it.Overdue, it.force, it.windows = d.Due, d.Overdue, d.Force, entry.Windows
	if d.Install {
		return it, nil
	}
	it.Why, it.Until = d.Why(), d.Next
	switch last := d.Trace[len(d.Trace)-1].Name; last {
	case "halt":
		it.State = StateHalted
	case "paused", "not-before", "step", "window", "own-window":
		it.State = StateWaiting
	default:
		it.State = StateRefused
		it.err = tuf.ErrNotTrusted
	}
	return it, nil
}

// approved reports whether the ring approved these very bytes and nobody
// stopped them, so that the patch's own programs may be run to look around.
func (it *Item) approved() bool {
	return it.patch != nil && it.State != StateHalted && it.State != StateRefused && it.State != StateStale
}

// applicable asks whether the patch is for this machine as it is.
func (e *evaluation) applicable(ctx context.Context, it *Item) {
	p := it.patch
	if !e.config.takes(p.Kind) {
		it.no(StateNotApplicable, "kind", fmt.Sprintf("this machine does not take patches of kind %s", p.Kind))
		return
	}
	looked := false
	device := patch.Device{OS: thisOS, Arch: thisArch, Installed: func(product string) string {
		if product == p.Product {
			looked = true
		}
		return e.version(ctx, product)
	}}
	alone := *p // what it requires of others is for arrange
	alone.Applies.Requires = nil
	ok, why := alone.AppliesTo(device)
	if looked {
		it.Installed = e.version(ctx, p.Product)
		if err := e.failing[p.Product]; err != nil {
			it.no(StateRefused, "installed", fmt.Sprintf("cannot find out what is installed: %v", err))
			it.err = err
			return
		}
		if it.Installed != "" && p.Compare(it.Installed, p.Version) == 0 {
			it.yes("installed", "this version is installed")
			it.State, it.Why = StateInstalled, "this version is installed"
			return
		}
	}
	if !ok {
		it.no(StateNotApplicable, "applies", why)
		return
	}
	for _, r := range p.Applies.Requires {
		alone.Applies.Requires = []string{r}
		if ok, why := alone.AppliesTo(device); !ok {
			it.lacks = append(it.lacks, lack{r, why})
		}
	}
	if len(it.lacks) > 0 {
		it.no(StateNotApplicable, "applies", it.lacks[0].why)
		return
	}
	it.yes("applies", e.appliesWords(it))
	if !e.direction(it) {
		return
	}
	if e.trouble != nil {
		it.no(StateStale, "fresh", staleWords(e.trouble))
		return
	}
	it.yes("fresh", "the metadata was refreshed just now")
	it.State, it.Why = StateOffered, "all conditions hold"
}

func (e *evaluation) appliesWords(it *Item) string {
	if it.Installed == "" {
		return fmt.Sprintf("it is for %s/%s machines, and %s is not installed", thisOS, thisArch, it.Product)
	}
	return fmt.Sprintf("it is for %s/%s machines, and %s %s is installed", thisOS, thisArch, it.Product, it.Installed)
}

// direction allows upgrades, and a downgrade only where the ring asks for it:
// the plan names a minimum-safe version of the product, the patch is not below
// that, and no newer version of the product stands in the plan, stopped or
// not. So stopping a version never puts an older one on a machine by itself.
// Below the minimum-safe version nothing is installed at all.
func (e *evaluation) direction(it *Item) bool {
	p := it.patch
	safe := e.plan.MinimumSafe[p.Product]
	if safe != "" && p.Compare(p.Version, safe) < 0 {
		it.no(StateRefused, "minimum-safe", fmt.Sprintf("ring %s lets %s not fall below %s", e.config.Ring, p.Product, safe))
		return false
	}
	if it.Installed == "" || p.Compare(it.Installed, p.Version) < 0 {
		it.yes("version", "it is newer than what is installed")
		return true
	}
	if safe == "" {
		it.no(StateNotApplicable, "version", fmt.Sprintf("%s is installed, which is newer, and ring %s has not asked to go back (no minimum-safe version)", it.Installed, e.config.Ring))
		return false
	}
	for i := range e.rep.Patches {
		if o := &e.rep.Patches[i]; o.Product == p.Product && p.Compare(o.Version, p.Version) > 0 {
			it.no(StateNotApplicable, "version", fmt.Sprintf("%s is installed, which is newer, and the plan still holds %s", it.Installed, o.ID()))
			return false
		}
	}
	it.yes("version", fmt.Sprintf("%s is newer, but ring %s asks to go back (minimum-safe version %s)", it.Installed, e.config.Ring, safe))
	return true
}

// version finds out what is installed of a product: by the newest patch of it
// in the plan that is approved for this machine, or else by the record. Only an
// approved patch's detect recipe is ever run.
func (e *evaluation) version(ctx context.Context, product string) string {
	if v, ok := e.found[product]; ok {
		return v
	}
	var by *Item
	for i := range e.rep.Patches {
		it := &e.rep.Patches[i]
		if it.Product != product || !it.approved() || !e.config.takes(it.Kind) || !fitsPlatform(it.patch) {
			continue
		}
		if by == nil || it.patch.Compare(it.Version, by.Version) > 0 {
			by = it
		}
	}
	known := e.known[product]
	v := known.Version
	if by != nil {
		if known.Package == "" {
			_, _, _, file, _ := layout.SplitPatchPath(by.Path)
			known.Package = install.GuessPackage(by.Kind, file, product)
		}
		var err error
		if v, err = e.installer.Detect(ctx, by.patch, known); err != nil {
			zerolog.Ctx(ctx).Warn().Err(err).Str("product", product).Msg("find out what is installed")
			e.failing[product] = err
		}
		if v != "" && v == known.Version && !e.installer.CanDetect(by.patch) {
			v = e.stillThere(ctx, product, v)
		}
	}
	e.found[product] = v
	return v
}

// stillThere asks the verify recipe of the version that the record holds whether
// it is still on the machine: somebody may have removed it. Only its no counts.
// Its yes is no proof of the version, so that without a record it is not asked.
func (e *evaluation) stillThere(ctx context.Context, product, version string) string {
	for i := range e.rep.Patches {
		it := &e.rep.Patches[i]
		if it.Product != product || !it.approved() || !e.config.takes(it.Kind) || !fitsPlatform(it.patch) ||
			it.patch.Compare(it.Version, version) != 0 || it.patch.Verify == nil {
			continue
		}
		if slices.ContainsFunc(it.patch.Verify.Argv, func(a string) bool { return strings.Contains(a, "{file}") }) {
			return version // it is not here any more to compare with
		}
		v, err := e.installer.Verify(ctx, install.Job{Patch: it.patch})
		if err != nil {
			e.failing[product] = err
			return version
		}
		if v.Result != patch.Success {
			zerolog.Ctx(ctx).Info().Str("patch", it.ID()).Str("why", v.Why).Msg("it is not installed any more")
			return ""
		}
	}
	return version
}

func fitsPlatform(p *patch.Patch) bool {
	os, arch := patch.SplitPlatform(p.Platform)
	return (os == "" || os == thisOS) && (arch == "" || arch == thisArch)
}

// journalled takes into account what was tried before.
func (e *evaluation) journalled(it *Item) error {
	if it.State != StateOffered && it.State != StateStale && it.State != StateWaiting {
		return nil
	}
	if r := e.underWay[it.Product]; r != nil && r.key() != recordKey(it.Path, it.SHA256) {
		it.no(StateWaiting, "journal", fmt.Sprintf("%s %s of the same product is %s; that is finished first", r.Patch.Product, r.Patch.Version, r.Step.Words()))
		return nil
	}
	key := recordKey(it.Path, it.SHA256)
	r, err := e.journal.load(key)
	if err != nil {
		return err
	}
	if r == nil {
		if e.journal.lost(key) && !e.retries(it) && it.patch.Verify == nil && !e.installer.CanDetect(it.patch) {
			it.no(StateFailed, "journal", "its journal was damaged, as by a power cut, and nothing tells whether it is installed: look at the machine, then apply --retry")
		}
		return nil
	}
	switch {
	case r.Step == StepRebootPending:
		it.no(StateRebootPending, "journal", "it was installed at "+r.Updated.Format(time.RFC3339)+"; the machine must be rebooted")
	case r.Step == StepNotApplicable:
		it.no(StateNotApplicable, "journal", "its installer said so: "+r.Why)
	case !r.final():
		it.no(StateInterrupted, "journal", fmt.Sprintf("a run was cut off while it was %s; apply finishes that first", r.Step.Words()))
	case r.Attempts >= MaxAttempts && r.Step != StepCommitted:
		it.no(StateFailed, "journal", fmt.Sprintf("tried %d times, last: %s", r.Attempts, r.Why))
	case r.Step == StepCommitted && r.returned(e.now) > MaxReturns:
		it.no(StateFailed, "journal", fmt.Sprintf("it was installed %d times, and each time it was gone again soon: something removes it, or its detect recipe is wrong", r.returned(e.now)))
	case r.Step == StepRetryLater && e.now.Before(r.Until):
		it.no(StateWaiting, "journal", fmt.Sprintf("%s, %d times of %d; it is tried again at %s", r.Why, r.Retries, MaxRetries, r.Until.In(e.now.Location()).Format(time.RFC3339)))
		it.Until = r.Until
	case r.Attempts > 0 && r.Step != StepCommitted:
		it.yes("journal", fmt.Sprintf("tried %d times of %d, last: %s", r.Attempts, MaxAttempts, r.Why))
	case r.Step == StepFetched || r.Step == StepVerified:
		it.yes("journal", fmt.Sprintf("its file was %s at %s, and waits to be installed", r.Step, r.Updated.In(e.now.Location()).Format(time.RFC3339)))
	}
	return nil
}
