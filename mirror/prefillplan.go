package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/fill"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

const (
	docTimeout = time.Minute // to read a plan or the halts

	// stragglers is how long after its last step a patch still comes before
	// those of the future: laptops come late.
	stragglers = 7 * 24 * time.Hour

	// pinShare of the cache may be pinned, so that what others ask for finds
	// room too.
	pinShare = 0.75
)

// ringWants is what a ring's plan asks for. It never changes.
type ringWants struct {
	ring     string
	wants    []*want // in the order in which they are fetched
	warnings []string
}

// want is a patch to have in the cache. It never changes, but for left before
// others see it.
type want struct {
	path       string        // target path
	start, end time.Time     // when the first and the last machines may ask for it
	objects    []fill.Object // its block list, if it has one, and itself
	deltas     []fill.Object // that machines may ask for in its place
	left       bool          // there is no room for it
}

// objectKey tells objects of the cache apart.
type objectKey struct {
	sum  string
	size int64
}

func keyOf(o fill.Object) objectKey { return objectKey{o.SHA256, o.Length} }

// plan finds out what there is to do, pins it, and reports whether it could
// read everything that it had to.
func (r *prefillRun) plan(ctx context.Context) (complete bool) {
	m := r.m
	s := m.shown.Load()
	v := s.current()
	if v == nil {
		return true // the first one wakes us
	}
	var jobs jobList
	complete = true
	if rings := slices.Compact(slices.Sorted(slices.Values(m.cfg.PrefillRings))); len(rings) > 0 {
		complete = r.planRings(ctx, v, rings, &jobs)
	}
	if ctx.Err() != nil {
		return complete
	}
	r.planLeftovers(s, &jobs)
	for key, j := range r.running {
		if !jobs.has[key] {
			j.cancel() // unless it has begun: then it goes on by itself
		}
	}
	r.jobs = jobs.list
	r.sort()

	p := &m.prefill
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.failed, func(k objectKey, _ error) bool { return !jobs.has[k] })
	return complete
}

// jobList has each object once.
type jobList struct {
	list []*prefillJob
	has  map[objectKey]bool
}

// add adds what is not cached. A job that runs already stays the same.
func (l *jobList) add(r *prefillRun, o fill.Object, leftover bool) {
	key := keyOf(o)
	if l.has[key] || r.m.cache.Has(o.SHA256, o.Length) {
		return
	}
	if l.has == nil {
		l.has = map[objectKey]bool{}
	}
	l.has[key] = true
	j := r.running[key]
	if j == nil {
		j = &prefillJob{obj: o}
	}
	j.leftover = leftover
	l.list = append(l.list, j)
}

// planRings reads the plans of the rings, pins what they want as far as it
// fits, the soonest first, and adds what of that is not there yet.
func (r *prefillRun) planRings(ctx context.Context, v *view, names []string, jobs *jobList) (complete bool) {
	m, now := r.m, r.m.cfg.Now()
	pins := pinning{sums: map[string]bool{}, room: math.MaxInt64}
	if m.cfg.CacheSize > 0 {
		pins.room = int64(float64(m.cfg.CacheSize) * pinShare)
	}
	halts, failed := r.read(ctx, v, layout.RoleHalt, layout.HaltsPath, &pins)
	complete = failed == nil
	var rings []ringWants
	var all []*want
	for _, name := range names {
		ring := ringWants{ring: name}
		if v.roles[layout.RingRole(name)] == nil {
			ring.warnings = []string{fmt.Sprintf("prefill: the repository has no ring %s; it has: %s", name, cmp.Or(v.ringNames(), "none"))}
			rings = append(rings, ring)
			continue
		}
		plan, err := r.read(ctx, v, layout.RingRole(name), layout.PlanPath(name), &pins)
		if err == nil && plan.plan != nil && plan.plan.Ring != name {
			plan.plan, plan.bad = nil, fmt.Errorf("it is the plan of ring %s", plan.plan.Ring)
		}
		complete = complete && err == nil
		ring.warn(layout.HaltsPath, failed, halts.bad)
		ring.warn(layout.PlanPath(name), err, plan.bad)
		ring.add(v, plan.plan, halts.halts)
		slices.SortFunc(ring.wants, soonest(now))
		all = append(all, ring.wants...)
		rings = append(rings, ring)
	}
	slices.SortFunc(all, soonest(now))
	for _, w := range all {
		if w.left = !pins.add(w.objects...); w.left {
			continue
		}
		if pins.add(w.deltas...) { // small, and asked for first
			for _, o := range w.deltas {
				jobs.add(r, o, false)
			}
		}
		for _, o := range w.objects {
			jobs.add(r, o, false)
		}
	}
	for i := range rings {
		rings[i].countLeft(m.cfg.CacheSize)
	}
	if ctx.Err() != nil {
		return complete
	}
	m.cache.SetPinned(pins.sums)
	m.prefill.mu.Lock()
	defer m.prefill.mu.Unlock()
	m.prefill.rings = rings
	return complete
}

func (w *ringWants) warn(path string, errs ...error) {
	if err := errors.Join(errs...); err != nil {
		w.warnings = append(w.warnings, fmt.Sprintf("prefill: cannot use %s: %v", path, err))
	}
}

// add wants what machines of the ring may ask for, now or later.
func (w *ringWants) add(v *view, plan *rollout.Plan, halts []rollout.Halt) {
	if plan == nil {
		return
	}
	missing, first := 0, ""
	halted := stopped(halts, plan.Lifts)
	for i := range plan.Entries {
		e := &plan.Entries[i]
		start, end, ok := span(e)
		if halted(e) || e.Paused || !ok {
			continue
		}
		o := v.objects[layout.TargetObject(e.Patch, e.SHA256)]
		if o == nil || o.SHA256 != e.SHA256 {
			if missing++; missing == 1 {
				first = e.Patch
			}
			continue
		}
		x := &want{path: e.Patch, start: start, end: end}
		if o.Blocks != nil {
			x.objects = append(x.objects, *o.Blocks)
		}
		x.objects = append(x.objects, o.Object)
		x.deltas = o.deltas
		w.wants = append(w.wants, x)
	}
	if missing > 0 {
		w.warnings = append(w.warnings, fmt.Sprintf("prefill: ring %s approves %d patches that the repository does not have with that content, withdrawn perhaps: %s is the first", w.ring, missing, first))
	}
}

// stopped returns what says whether a patch is halted and the ring has not
// lifted that. Both lists may be long.
func stopped(halts []rollout.Halt, lifts []string) func(*rollout.Entry) bool {
	lifted, products, sums := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, id := range lifts {
		lifted[id] = true
	}
	all := false
	for _, h := range halts {
		if !lifted[h.ID] {
			all = all || h.All
			products[h.Product], sums[h.SHA256] = true, true // or "", which none is
		}
	}
	return func(e *rollout.Entry) bool {
		product, _, _, _, _ := layout.SplitPatchPath(e.Patch)
		return all || products[product] || sums[e.SHA256]
	}
}

// span returns when the first and the last machines of the ring may ask for a
// patch. ok is false if none ever may.
func span(e *rollout.Entry) (start, end time.Time, ok bool) {
	if len(e.Steps) == 0 {
		return e.NotBefore, e.NotBefore, true
	}
	for _, s := range e.Steps {
		if s.Percent > 0 {
			at := e.NotBefore.Add(time.Duration(s.At) * time.Second)
			if !ok {
				start, ok = at, true
			}
			end = at
		}
	}
	return start, end, ok
}

// soonest orders patches: those that machines ask for now and those that they
// will ask for, by when that begins; then those that most have, newest first.
func soonest(now time.Time) func(a, b *want) int {
	over := func(w *want) int {
		if now.After(w.end.Add(stragglers)) {
			return 1
		}
		return 0
	}
	return func(a, b *want) int {
		when := a.start.Compare(b.start)
		if over(a) == 1 {
			when = -when
		}
		return cmp.Or(over(a)-over(b), when, cmp.Compare(a.path, b.path))
	}
}

// countLeft says what there was no room for.
func (w *ringWants) countLeft(cacheSize int64) {
	left, size := 0, int64(0)
	for _, x := range w.wants {
		if x.left {
			left++
		}
		for _, o := range x.objects {
			size += o.Length
		}
	}
	if left > 0 {
		w.warnings = append(w.warnings, fmt.Sprintf("prefill: %d of %d patches of ring %s do not fit: all of them need %s, and three quarters of the cache, %s, are for prefill: raise --cache-size",
			left, len(w.wants), w.ring, humanize.IBytes(uint64(size)), humanize.IBytes(uint64(float64(cacheSize)*pinShare))))
	}
}

// pinning collects what is to be pinned.
type pinning struct {
	sums map[string]bool
	room int64
}

// add adds all of the objects, or none if they do not fit.
func (p *pinning) add(objects ...fill.Object) bool {
	room := p.room
	for _, o := range objects {
		if p.sums[o.SHA256] {
			continue
		}
		if o.Length > room {
			return false
		}
		room -= o.Length
	}
	p.room = room
	for _, o := range objects {
		p.sums[o.SHA256] = true
	}
	return true
}

// planLeftovers adds what earlier fills have left unfinished and the present
// view still names, and gives up what of it no view names.
func (r *prefillRun) planLeftovers(s *shown, jobs *jobList) {
	for _, j := range r.running {
		if j.leftover { // a part no longer, and not yet an object
			jobs.add(r, j.obj, true)
		}
	}
	parts := map[objectKey]*object{} // nil: not found
	for _, p := range r.m.cache.Parts() {
		parts[objectKey{p.SHA256, p.Size}] = nil
	}
	if len(parts) == 0 {
		return
	}
	var present []*object
	for i, v := range s.views {
		for _, o := range v.objects {
			k := keyOf(o.Object)
			if found, is := parts[k]; !is || found != nil {
				continue
			}
			parts[k] = o
			if i == 0 {
				present = append(present, o)
			}
		}
	}
	r.m.cache.DropParts(func(p cache.Part) bool {
		o, known := parts[objectKey{p.SHA256, p.Size}]
		return !known || o != nil // new ones are asked about the next time
	})
	slices.SortFunc(present, func(a, b *object) int { return cmp.Or(cmp.Compare(a.Length, b.Length), cmp.Compare(a.Name, b.Name)) })
	for _, o := range present {
		jobs.add(r, o.Object, true)
	}
}

// signedDoc is a plan or the halts as parsed.
type signedDoc struct {
	sum   string // SHA-256 of what was parsed
	plan  *rollout.Plan
	halts []rollout.Halt
	bad   error // why it cannot be used
}

// read returns a role's document, and pins it. If the document cannot be had
// now, that is an error, and the one before it is returned. One that there is
// not is empty.
func (r *prefillRun) read(ctx context.Context, v *view, role, path string, pins *pinning) (signedDoc, error) {
	o := v.target(role, path)
	if o == nil {
		delete(r.docs, path)
		return signedDoc{}, nil
	}
	pins.add(o.Object)
	if d := r.docs[path]; d.sum == o.SHA256 {
		return d, nil
	}
	d, limit := signedDoc{sum: o.SHA256}, int64(rollout.MaxPlanSize)
	if role == layout.RoleHalt {
		limit = rollout.MaxHaltsSize
	}
	if o.Length > limit {
		d.bad = fmt.Errorf("it has %d bytes, at most %d are allowed", o.Length, limit)
	} else {
		data, err := r.fetch(ctx, o.Object)
		if err != nil {
			return r.docs[path], err
		}
		if role == layout.RoleHalt {
			var halts *rollout.Halts
			if halts, d.bad = rollout.ParseHalts(data); d.bad == nil {
				d.halts = halts.Halts
			}
		} else {
			d.plan, d.bad = rollout.ParsePlan(data)
		}
	}
	r.docs[path] = d
	return d, nil
}

// fetch returns a small object, by way of the cache.
func (r *prefillRun) fetch(ctx context.Context, o fill.Object) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, docTimeout)
	defer cancel()
	f, err := r.m.filler.Open(ctx, o, fill.Request{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, o.Length+1))
	if err == nil && int64(len(data)) != o.Length {
		err = io.ErrUnexpectedEOF
	}
	return data, err
}

// target finds what a role says about a target path, nil if nothing.
func (v *view) target(role, path string) *object {
	r := v.roles[role]
	if r == nil {
		return nil
	}
	for name, o := range r.objects {
		if name == layout.TargetObject(path, o.SHA256) {
			return o
		}
	}
	return nil
}

// ringNames lists the rings of the view for a message.
func (v *view) ringNames() string {
	var names []string
	for role := range v.roles {
		if name, ok := layout.RingOfRole(role); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if len(names) > 20 {
		names = append(names[:20], "…")
	}
	return strings.Join(names, ", ")
}
