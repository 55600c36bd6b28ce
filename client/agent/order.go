package agent

import (
	"fmt"
	"slices"
	"strings"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// arrange orders the patches of the plan among each other: what one requires
// goes in before it, and what another makes needless does not go in at all.
//
// A patch that lacks another can go in once each of its requirements has a
// patch in the plan that is offered now, or that in turn can go in. Of several
// the newest is taken. Such a patch waits: the check after its requirement went
// in offers it.
//
// A patch is dropped for one that is installed or can go in, and that supersedes
// it: by its own word, over any number of steps, or as the newer one of the same
// product. What the other itself requires is not dropped.
func (e *evaluation) arrange() error {
	o := &order{evaluation: e, barred: map[*Item]bool{}, byProduct: map[string][]*Item{}, byRef: map[string][]*Item{}}
	for i := range e.rep.Patches {
		it := &e.rep.Patches[i]
		if it.patch == nil {
			continue
		}
		o.byProduct[it.Product] = append(o.byProduct[it.Product], it)
		o.byRef[it.Product+"@"+it.Version] = append(o.byRef[it.Product+"@"+it.Version], it)
		ok := it.State == StateOffered
		if len(it.lacks) > 0 {
			var err error
			if ok, err = e.lacksOnly(it); err != nil {
				return err
			}
		}
		if ok {
			o.ready = append(o.ready, it)
		}
	}
	o.supersedes()
	for o.settle() {
	}
	clear(o.barred) // one that can go in after all drops what it supersedes
	o.drop()
	o.tell()
	return nil
}

// lack is an entry of a patch's requires that the machine does not fulfil.
type lack struct{ ref, why string }

// lacksOnly reports whether nothing but requirements stands in the way.
func (e *evaluation) lacksOnly(it *Item) (bool, error) {
	probe := *it
	probe.State, probe.Trace = StateOffered, nil
	if !e.rep.Fresh || !e.direction(&probe) {
		return false, nil
	}
	if err := e.journalled(&probe); err != nil {
		return false, err
	}
	if probe.State != StateOffered {
		it.lacks = nil
		it.no(probe.State, "journal", probe.Why)
		it.Until = probe.Until
		return false, nil
	}
	return true, nil
}

// order is one arrangement under way.
type order struct {
	*evaluation
	byProduct map[string][]*Item
	byRef     map[string][]*Item
	ready     []*Item                  // offered, or lacking requirements only; in the plan's order
	over      map[*Item]map[*Item]bool // by whose word an item is superseded

	first   map[*Item][]*Item // what goes in before an item that can go in, in order
	dropped map[*Item]*Item   // for whom
	barred  map[*Item]bool    // nothing is dropped for it: it cannot go in after all
}

// supersedes follows what patches say that they supersede. Those that say it of
// each other are refused.
func (o *order) supersedes() {
	o.over = map[*Item]map[*Item]bool{}
	for _, items := range o.byProduct {
		for _, from := range items {
			if !from.approved() {
				continue
			}
			seen := map[*Item]bool{}
			for todo := []*Item{from}; len(todo) > 0; {
				by := todo[0]
				todo = todo[1:]
				for _, ref := range by.patch.Applies.Supersedes {
					for _, it := range o.byRef[ref] {
						if !seen[it] {
							seen[it] = true
							if it.approved() {
								todo = append(todo, it)
							}
						}
					}
				}
			}
			for it := range seen {
				if o.over[it] == nil {
					o.over[it] = map[*Item]bool{}
				}
				o.over[it][from] = true
			}
		}
	}
	var quarrel []*Item
	for _, it := range o.ready {
		if o.over[it][it] {
			quarrel = append(quarrel, it)
		}
	}
	for _, it := range quarrel {
		with := []string{it.ID()}
		for _, other := range quarrel {
			if other != it && o.over[it][other] && o.over[other][it] {
				with = append(with, other.ID())
			}
		}
		why := strings.Join(with, ", ") + " each say that they supersede the other: nothing of that is installed until the publisher mends it"
		if len(with) == 1 && !o.quarrelsOutside(it) {
			why = "it says that it supersedes itself: the publisher must mend it"
		}
		o.ready = slices.DeleteFunc(o.ready, func(i *Item) bool { return i == it })
		it.lacks = nil
		it.no(StateRefused, "newest", why)
	}
}

// quarrelsOutside reports whether the circle that supersedes it leads over
// patches that are not ready.
func (o *order) quarrelsOutside(it *Item) bool {
	for other := range o.over[it] {
		if other != it && o.over[other][it] {
			return true
		}
	}
	return false
}

// settle drops what is to be dropped. It reports whether it must be called
// again: when something was dropped for a patch that in the end cannot go in.
func (o *order) settle() bool {
	o.dropped = map[*Item]*Item{}
	o.drop()
	// One at a time: without it the others may be right.
	for _, gone := range []func(by *Item) bool{
		func(by *Item) bool { return o.first[by] == nil && o.dropped[by] == nil },
		func(by *Item) bool { return o.dropped[by] != nil },
	} {
		for _, it := range o.ready {
			if by := o.dropped[it]; by != nil && by.State != StateInstalled && gone(by) && !o.barred[by] {
				o.barred[by] = true
				return true
			}
		}
	}
	return false
}

// drop drops what is superseded, until nothing more is.
func (o *order) drop() {
	for again := true; again; {
		again = false
		o.sequence()
		for _, it := range o.ready {
			if o.dropped[it] == nil {
				if by := o.dropper(it); by != nil {
					o.dropped[it], again = by, true
				}
			}
		}
	}
}

// sequence finds out what can go in, and after what: round by round, so that
// nobody waits for somebody who waits for him.
func (o *order) sequence() {
	o.first = map[*Item][]*Item{}
	for again := true; again; {
		again = false
		found := map[*Item][]*Item{}
		for _, it := range o.ready {
			if o.first[it] == nil && o.dropped[it] == nil {
				if first, ok := o.after(it); ok {
					found[it] = first
				}
			}
		}
		for it, first := range found {
			o.first[it], again = first, true
		}
	}
}

// after returns all that goes in before it, itself not among it, if all its
// requirements are taken care of.
func (o *order) after(it *Item) ([]*Item, bool) {
	out := []*Item{}
	for _, l := range it.lacks {
		by := o.provider(l, func(p *Item) bool { return o.first[p] != nil && o.dropped[p] == nil })
		if by == nil {
			return nil, false
		}
		for _, p := range append(slices.Clone(o.first[by]), by) {
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out, true
}

// provider is the newest patch in the plan that a requirement asks for, among
// those that fit.
func (o *order) provider(l lack, fit func(*Item) bool) *Item {
	product, version, err := patch.ParseRequirement(l.ref)
	if err != nil {
		return nil
	}
	var best *Item
	for _, it := range o.byProduct[product] {
		if version != "" && patch.CompareVersions(it.Version, version) < 0 || !fitsPlatform(it.patch) || !fit(it) {
			continue
		}
		if best == nil || it.patch.Compare(it.Version, best.Version) > 0 {
			best = it
		}
	}
	return best
}

// dropper is for whom a patch is dropped; nil if for nobody.
func (o *order) dropper(it *Item) *Item {
	var best *Item
	for _, by := range o.byProduct[it.Product] {
		if o.goesIn(by, it) && by.patch.Compare(by.Version, it.Version) > 0 && !o.over[by][it] {
			if best == nil || by.patch.Compare(by.Version, best.Version) > 0 {
				best = by
			}
		}
	}
	if best != nil {
		return best
	}
	if len(o.over[it]) == 0 {
		return nil
	}
	for i := range o.rep.Patches { // in the plan's order, so that the answer is always the same
		by := &o.rep.Patches[i]
		if o.over[it][by] && (by.State == StateInstalled || o.goesIn(by, it)) {
			return by
		}
	}
	return nil
}

// goesIn reports whether by can go in, and without it.
func (o *order) goesIn(by, it *Item) bool {
	return by != it && o.first[by] != nil && o.dropped[by] == nil && !o.barred[by] && !slices.Contains(o.first[by], it)
}

// tell turns the arrangement into states and words.
func (o *order) tell() {
	for _, it := range o.ready {
		by := o.dropped[it]
		switch {
		case by != nil && o.over[it][by] && by.State == StateInstalled:
			it.no(StateSuperseded, "newest", by.ID()+" is installed, which supersedes it")
		case by != nil && o.over[it][by]:
			it.no(StateSuperseded, "newest", by.ID()+" is offered, which supersedes it")
		case by != nil:
			it.no(StateSuperseded, "newest", by.ID()+" is offered, which is newer")
		case len(it.lacks) > 0 && o.first[it] != nil:
			it.first = o.first[it]
			for _, f := range it.first {
				it.After = append(it.After, f.ID())
			}
			it.lacking(StateWaiting, it.lacks[0].why+"; "+list(it.After)+" goes in first")
		}
	}
	told := map[*Item]bool{}
	for i := range o.rep.Patches {
		o.explain(&o.rep.Patches[i], nil, told)
	}
}

// lacking words the last question of the trace, which was about requirements,
// anew.
func (it *Item) lacking(state State, why string) {
	it.Trace = it.Trace[:len(it.Trace)-1]
	it.no(state, "applies", why)
}

// explain says of a patch that cannot go in where the patch that it requires is
// stuck; path leads here.
func (o *order) explain(it *Item, path []*Item, told map[*Item]bool) {
	if i := slices.Index(path, it); i >= 0 {
		o.circle(path[i:], told)
		return
	}
	if told[it] || len(it.lacks) == 0 || o.dropped[it] != nil || o.first[it] != nil {
		return
	}
	for _, l := range it.lacks {
		if o.provider(l, func(p *Item) bool { return o.first[p] != nil && o.dropped[p] == nil }) != nil {
			continue
		}
		by := o.provider(l, func(p *Item) bool { return p != it })
		if by == nil {
			by = o.provider(l, func(*Item) bool { return true })
		}
		if by == nil {
			it.lacking(StateNotApplicable, l.why+", and the plan holds no patch for it")
			break
		}
		o.explain(by, append(slices.Clone(path), it), told)
		if told[it] { // it is in the circle
			return
		}
		state := StateNotApplicable
		if slices.Contains([]State{StateWaiting, StateHalted, StateFailed, StateStale, StateRebootPending, StateInterrupted}, by.State) {
			state = StateWaiting
		}
		it.lacking(state, fmt.Sprintf("%s; %s is %s: %s", l.why, by.ID(), by.State, shorten(by.Why)))
		it.Until = by.Until
		break
	}
	told[it] = true
}

// shorten bounds what is passed on from patch to patch.
func shorten(why string) string {
	const most = 600
	if len(why) > most {
		return strings.ToValidUTF8(why[:most], "") + "…"
	}
	return why
}

// circle refuses patches that require each other.
func (o *order) circle(items []*Item, told map[*Item]bool) {
	var names []string
	for _, it := range items {
		names = append(names, it.ID())
	}
	for i, it := range items {
		round := append(slices.Clone(names[i:]), names[:i+1]...)
		it.lacking(StateRefused, "the requirements go in a circle: "+strings.Join(round, " requires ")+"; the publisher must break it")
		told[it] = true
	}
}

func list(ids []string) string {
	if len(ids) == 1 {
		return ids[0]
	}
	return strings.Join(ids[:len(ids)-1], ", ") + ", then " + ids[len(ids)-1]
}
