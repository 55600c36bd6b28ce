package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/mirrors"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// RebasePending makes a stale change anew on top of what is published now, and
// returns the change that takes its place. What the change means to do is the
// difference between its metadata and what it was made on top of. Roles that
// still fit keep their bytes and their signatures; the others have to be signed
// again, by everyone, since nobody has read them yet. If others changed the same
// thing meanwhile, that is ErrStale, and the change has to be made by hand.
func (r *Repository) RebasePending(ctx context.Context, id string) (*Pending, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	p, err := r.readPending(ctx, base, id)
	if err != nil {
		return nil, err
	}
	if p.desc.makes() {
		return nil, fmt.Errorf("change %s makes a new repository: %w: run init again", id, ErrStale)
	}
	if err := p.judge(ctx); err != nil {
		return nil, err
	}
	switch err := p.Open(); {
	case err == nil:
		return nil, fmt.Errorf("change %s fits what is published, so there is nothing to rebase: %w", id, ErrExists)
	case !errors.Is(err, ErrStale):
		return nil, err
	}
	d := r.draftOn(base)
	kept, err := p.mergeInto(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("rebase change %s: %w", id, err)
	}
	if len(d.roles) == 0 {
		return nil, fmt.Errorf("rebase change %s: all that it does %w: abandon it", id, ErrExists)
	}
	next, err := d.stage(ctx, id, kept)
	if err != nil {
		return nil, err
	}
	err = r.close(ctx, id, Closing{Outcome: outcomeRebased, Next: next.ID})
	if err == nil || !errors.Is(err, ErrClosed) {
		return next, err
	}
	// Someone else did it at the same moment. Made in the same second from the
	// same, theirs is the same change.
	data, rerr := readBounded(ctx, r.store, layout.PendingClosed(id), maxSignatureFile)
	if rerr != nil {
		return nil, errors.Join(err, rerr)
	}
	if c, rerr := parseClosing(data); rerr == nil && c.Next == next.ID {
		return next, nil
	}
	return nil, errors.Join(err, r.close(ctx, next.ID, Closing{Outcome: outcomeAbandoned, Reason: "change " + id + " was closed meanwhile"}))
}

// mergeInto puts what the change does into a draft on a newer base. It returns
// the roles that are kept as they are.
func (p *Pending) mergeInto(ctx context.Context, d *draft) (kept map[string]*pendingPart, err error) {
	kept = make(map[string]*pendingPart)
	for _, desc := range p.desc.Roles {
		part := p.parts[desc.Role]
		misfit, err := p.misfit(ctx, part)
		if err != nil {
			return nil, err
		}
		if !misfit.content {
			kept[desc.Role] = part
			d.roles[desc.Role] = part.md
			continue
		}
		if err := d.merge(ctx, part); err != nil {
			return nil, fmt.Errorf("role %s: %w", desc.Role, err)
		}
	}
	for role, part := range kept { // now that the delegator is known
		again := *part
		if again.desc.KeyIDs, again.desc.Threshold, err = d.authority(ctx, role); err != nil {
			return nil, err
		}
		if again.keys, err = d.declared(ctx, role); err != nil {
			return nil, err
		}
		again.signatures = slices.DeleteFunc(slices.Clone(part.signatures), func(s metadata.Signature) bool {
			return !slices.Contains(again.desc.KeyIDs, s.KeyID) || verifySignature(again.keys[s.KeyID], again.payload, s.Signature) != nil
		})
		kept[role] = &again
	}
	return kept, nil
}

// merge does to a role of the draft what a staged part did to an older version.
func (d *draft) merge(ctx context.Context, part *pendingPart) error {
	role := part.desc.Role
	if part.desc.From == 0 {
		if d.version(role) != 0 {
			return fmt.Errorf("it %w", ErrExists)
		}
		md := *part.md
		d.roles[role] = &md
		return nil
	}
	old, err := d.olderVersion(ctx, role, part.desc.From)
	if err != nil {
		return err
	}
	now, err := d.edit(ctx, role)
	if err != nil {
		return err
	}
	ours := &part.md.Signed
	m := &merging{draft: d, role: role}
	if err := m.targets(ctx, old, ours, now); err != nil {
		return err
	}
	if err := m.delegations(old, ours, now); err != nil {
		return err
	}
	if err := m.fields(old, ours, now); err != nil {
		return err
	}
	if d.version(role) == part.desc.From {
		return nil // nobody else published it: only the version or the expiry is new
	}
	published, err := d.base.role(ctx, role)
	if err != nil {
		return err
	}
	if sameContent(now, &published.Signed) {
		delete(d.roles, role)
	}
	return nil
}

// olderVersion reads a published version of a role as it lies in the store. It
// is not verified: whatever comes of it is read by people before they sign.
func (d *draft) olderVersion(ctx context.Context, role string, version int64) (*metadata.TargetsType, error) {
	name := layout.MetadataObject(role, version)
	data, err := readObject(ctx, d.repo.store, name)
	if err != nil {
		return nil, fmt.Errorf("read what the change was made on top of: %w", err)
	}
	md := &targetsMetadata{}
	err = guard(func() error {
		_, err := md.FromBytes(data)
		if err != nil {
			return err
		}
		for path, tf := range md.Signed.Targets {
			if tf == nil {
				return fmt.Errorf("target %q has no entry", path)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadPending, name, err)
	}
	return &md.Signed, nil
}

func sameContent(a, b *metadata.TargetsType) bool {
	plain := func(t *metadata.TargetsType) string {
		c := *t
		c.Version, c.Expires = b.Version, b.Expires
		c.UnrecognizedFields = maps.Clone(t.UnrecognizedFields)
		delete(c.UnrecognizedFields, tuf.SignedAtField)
		return compact(c)
	}
	return plain(a) == plain(b)
}

// merging is a three-way merge of one role: what a change did to an older
// version is done to the draft's.
type merging struct {
	*draft
	role string
}

func conflict(what string) error {
	return fmt.Errorf("%w: others changed %s too; make the change by hand, and abandon this one", ErrStale, what)
}

func (m *merging) targets(ctx context.Context, old, ours, now *metadata.TargetsType) error {
	for _, path := range unionKeys(old.Targets, ours.Targets) {
		was, is, there := old.Targets[path], ours.Targets[path], now.Targets[path]
		switch {
		case sameTarget(was, is), sameTarget(is, there):
		case sameTarget(was, there):
			if is == nil {
				delete(now.Targets, path)
			} else {
				now.Targets[path] = is
			}
		default:
			if err := m.document(ctx, path, was, is, there); err != nil {
				return err
			}
		}
	}
	return nil
}

func sameTarget(a, b *metadata.TargetFiles) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b) && sameCustom(a, b) && compact(entryFields(a)) == compact(entryFields(b))
}

// document merges a document of ours that both sides changed.
func (m *merging) document(ctx context.Context, path string, was, is, there *metadata.TargetFiles) error {
	rewrite := m.rewriter(path)
	if rewrite == nil || is == nil || there == nil {
		return conflict(path)
	}
	var trees [3]map[string]any
	for i, tf := range []*metadata.TargetFiles{was, is, there} {
		if tf == nil {
			trees[i] = map[string]any{}
			continue
		}
		data, err := m.readDocument(ctx, path, tf, rollout.MaxPlanSize)
		if err != nil {
			return err
		}
		if trees[i], err = object(data); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	merged, err := merge3(path, trees[0], trees[1], trees[2])
	if err != nil {
		return err
	}
	data, err := json.Marshal(merged)
	if err != nil {
		return err
	}
	if data, err = rewrite(data); err != nil {
		return err
	}
	return m.putDocument(ctx, m.role, path, data)
}

// rewriter checks a merged document, and writes it as it is always written.
func (m *merging) rewriter(path string) func([]byte) ([]byte, error) {
	ring, isRing := layout.RingOfRole(m.role)
	switch {
	case isRing && path == layout.PlanPath(ring):
		return func(data []byte) ([]byte, error) {
			p, err := rollout.ParsePlan(data)
			if err != nil {
				return nil, err
			}
			return p.Encode()
		}
	case m.role == layout.RoleHalt && path == layout.HaltsPath:
		return func(data []byte) ([]byte, error) {
			h, err := rollout.ParseHalts(data)
			if err != nil {
				return nil, err
			}
			return h.Encode()
		}
	case m.role == layout.RoleMirrors && path == layout.MirrorsPath:
		return func(data []byte) ([]byte, error) {
			l, err := mirrors.Parse(data)
			if err != nil {
				return nil, err
			}
			return l.Encode()
		}
	}
	return nil
}

func (m *merging) delegations(old, ours, now *metadata.TargetsType) error {
	before, after, there := delegatedRoles(old), delegatedRoles(ours), delegatedRoles(now)
	for _, name := range unionKeys(before, after) {
		was, is, have := compact(before[name]), compact(after[name]), compact(there[name])
		switch {
		case was == is, is == have:
			continue
		case was != have:
			return conflict("role " + name)
		}
		if now.Delegations == nil {
			now.Delegations = &metadata.Delegations{Keys: make(map[string]*metadata.Key)}
		}
		at := slices.IndexFunc(now.Delegations.Roles, func(r metadata.DelegatedRole) bool { return r.Name == name })
		switch {
		case after[name] == nil:
			now.Delegations.Roles = slices.Delete(now.Delegations.Roles, at, at+1)
		case at < 0:
			now.Delegations.Roles = append(now.Delegations.Roles, *after[name])
		default:
			now.Delegations.Roles[at] = *after[name]
		}
	}
	if now.Delegations == nil {
		return nil
	}
	used := make(map[string]bool)
	for _, r := range now.Delegations.Roles {
		for _, id := range r.KeyIDs {
			used[id] = true
			if now.Delegations.Keys[id] == nil && ours.Delegations != nil {
				now.Delegations.Keys[id] = ours.Delegations.Keys[id]
			}
		}
	}
	maps.DeleteFunc(now.Delegations.Keys, func(id string, _ *metadata.Key) bool { return !used[id] })
	return nil
}

// fields merges the fields of a role that go-tuf does not know.
func (m *merging) fields(old, ours, now *metadata.TargetsType) error {
	var trees [3]map[string]any
	for i, t := range []*metadata.TargetsType{old, ours, now} {
		data, err := json.Marshal(t.UnrecognizedFields)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, &trees[i]); err != nil {
			return err
		}
		delete(trees[i], tuf.SignedAtField)
	}
	merged, err := merge3("", trees[0], trees[1], trees[2])
	if err != nil {
		return err
	}
	now.UnrecognizedFields = merged
	return nil
}

// noMember stands for a member that is not there.
type noMember struct{}

var absent any = noMember{}

// merge3 does to now what was done to old to get ours. Objects are merged by
// member, lists of texts as sets, and lists of objects by what identifies these;
// such an object is changed by one side only.
func merge3(place string, old, ours, now map[string]any) (map[string]any, error) {
	out := make(map[string]any)
	for _, name := range unionKeys(old, unionOf(ours, now)) {
		v, err := mergeValue(place+" "+name, member(old, name), member(ours, name), member(now, name))
		if err != nil {
			return nil, err
		}
		if v != absent {
			out[name] = v
		}
	}
	return out, nil
}

func unionOf(a, b map[string]any) map[string]any {
	all := maps.Clone(a)
	if all == nil {
		all = make(map[string]any)
	}
	maps.Copy(all, b)
	return all
}

func member(o map[string]any, name string) any {
	if v, ok := o[name]; ok {
		return v
	}
	return absent
}

func mergeValue(place string, old, ours, now any) (any, error) {
	same := func(a, b any) bool {
		if a == absent || b == absent {
			return a == absent && b == absent
		}
		return compact(a) == compact(b)
	}
	switch {
	case same(old, ours), same(ours, now):
		return now, nil
	case same(old, now):
		return ours, nil
	}
	a, aok := ours.(map[string]any)
	b, bok := now.(map[string]any)
	if aok && bok {
		return merge3(place, asObject(old), a, b)
	}
	if l, ok := ours.([]any); ok {
		if m, ok := now.([]any); ok {
			was, _ := old.([]any)
			return mergeList(place, was, l, m)
		}
	}
	return nil, conflict(place)
}

// mergeList merges lists whose elements are told apart by their text, or by
// what names them.
func mergeList(place string, old, ours, now []any) (any, error) {
	was, err := byName(place, old)
	if err != nil {
		return nil, err
	}
	is, err := byName(place, ours)
	if err != nil {
		return nil, err
	}
	there, err := byName(place, now)
	if err != nil {
		return nil, err
	}
	out := []any{}
	seen := make(map[string]bool)
	for _, e := range slices.Concat(now, ours) {
		name := nameOf(e)
		if seen[name] {
			continue
		}
		seen[name] = true
		a, b, c := member(was, name), member(is, name), member(there, name)
		switch {
		case compactOf(a) == compactOf(b), compactOf(b) == compactOf(c):
			e = c
		case compactOf(a) == compactOf(c):
			e = b
		default:
			return nil, conflict(place + " " + name)
		}
		if e != absent {
			out = append(out, e)
		}
	}
	return out, nil
}

func compactOf(v any) string {
	if v == absent {
		return ""
	}
	return compact(v)
}

func byName(place string, list []any) (map[string]any, error) {
	by := make(map[string]any, len(list))
	for _, e := range list {
		name := nameOf(e)
		if _, twice := by[name]; name == "" || twice {
			return nil, conflict(place)
		}
		by[name] = e
	}
	return by, nil
}

// nameOf is what an element of a list is known by; "" if by nothing.
func nameOf(e any) string {
	switch e := e.(type) {
	case string:
		return e
	case map[string]any:
		for _, field := range []string{"patch", "id", "url", "name", "ring"} {
			if s, ok := e[field].(string); ok && s != "" {
				return s
			}
		}
	}
	return ""
}
