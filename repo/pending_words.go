package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// maxShown bounds a document whose content is shown, in bytes. Of a larger one
// length and hash are.
const maxShown = 1 << 20

// describe says in words what the draft does to each edited role: all of it,
// for a person who is to sign it. It reads the metadata and the documents that
// it names. Fields that it has no words for it shows as they are.
func (d *draft) describe(ctx context.Context) (map[string][]string, error) {
	words := make(map[string][]string)
	if d.base == nil {
		w := &wording{draft: d, role: layout.RoleRoot}
		if err := w.newRoot(); err != nil {
			return nil, err
		}
		words[layout.RoleRoot] = w.lines
	}
	for _, role := range d.edited() {
		w := &wording{draft: d, role: role, after: &d.roles[role].Signed, before: &metadata.TargetsType{}}
		if d.base != nil {
			published, err := d.base.role(ctx, role)
			switch {
			case err == nil:
				w.before = &published.Signed
			case !errors.Is(err, fs.ErrNotExist):
				return nil, err
			}
		}
		if err := w.all(ctx); err != nil {
			return nil, err
		}
		words[role] = w.lines
	}
	return words, nil
}

// wording puts together what is said about one role.
type wording struct {
	*draft
	role          string
	before, after *metadata.TargetsType
	lines         []string
}

func (w *wording) say(format string, args ...any) {
	w.lines = append(w.lines, printable(fmt.Sprintf(format, args...)))
}

// detail says more about the line before.
func (w *wording) detail(lines ...string) {
	for _, l := range lines {
		w.lines = append(w.lines, "    "+printable(l))
	}
}

func (w *wording) all(ctx context.Context) error {
	if err := w.delegations(); err != nil {
		return err
	}
	if err := w.policies(); err != nil {
		return err
	}
	paths := slices.Sorted(maps.Keys(w.before.Targets))
	for path := range w.after.Targets {
		if w.before.Targets[path] == nil {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	for _, path := range paths {
		before, after := w.before.Targets[path], w.after.Targets[path]
		if before == after || sameTarget(before, after) {
			continue
		}
		if err := w.target(ctx, path, before, after); err != nil {
			return err
		}
	}
	return w.rest()
}

// rest shows whatever else differs in the signed part.
func (w *wording) rest() error {
	lines, err := compared(w.others(w.before), w.others(w.after))
	if err != nil {
		return err
	}
	for _, line := range lines {
		w.say("%s: field %s", w.role, line)
	}
	return nil
}

// others are the fields of a role that are neither its targets, nor its
// delegations, nor said beside the words: version, expiry, time of signing.
func (w *wording) others(t *metadata.TargetsType) map[string]any {
	fields := unknownFields(t.UnrecognizedFields, w.role, w.before.Type == "")
	if t.Type != "" && t.SpecVersion != metadata.SPECIFICATION_VERSION {
		fields["spec_version"] = t.SpecVersion
	}
	if t.Delegations != nil {
		for name, value := range t.Delegations.UnrecognizedFields {
			fields["delegations."+name] = value
		}
		if t.Delegations.SuccinctRoles != nil {
			fields["delegations.succinct_roles"] = t.Delegations.SuccinctRoles
		}
	}
	return fields
}

func (w *wording) target(ctx context.Context, path string, before, after *metadata.TargetFiles) error {
	ring, _ := layout.RingOfRole(w.role)
	switch {
	case path == layout.PlanPath(ring):
		return w.document(ctx, path, before, after, rollout.MaxPlanSize, func(data []byte) error {
			p, err := rollout.ParsePlan(data)
			if err == nil && p.Ring != ring {
				err = fmt.Errorf("it is the plan of ring %s", p.Ring)
			}
			return err
		}, func(old, new map[string]any) error { return w.plan(ctx, ring, old, new) })
	case path == layout.HaltsPath && w.role == layout.RoleHalt:
		return w.document(ctx, path, before, after, rollout.MaxHaltsSize, func(data []byte) error {
			_, err := rollout.ParseHalts(data)
			return err
		}, w.halts)
	}
	return w.file(ctx, path, before, after)
}

// document has a document of ours put into words, and then the rest of the
// target's entry, if there is anything beside length and hash.
func (w *wording) document(ctx context.Context, path string, before, after *metadata.TargetFiles, limit int64,
	check func([]byte) error, words func(old, new map[string]any) error,
) error {
	if after == nil {
		w.say("%s: REMOVES %s", strings.Replace(w.role, "ring-", "ring ", 1), path)
		return nil
	}
	oldData, err := w.content(ctx, path, before, limit)
	if err != nil {
		oldData = nil // it is all new then
	}
	newData, err := w.content(ctx, path, after, limit)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadPending, err)
	}
	if err := check(newData); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBadPending, path, err)
	}
	old, err := object(oldData)
	if err != nil {
		old = map[string]any{}
	}
	new, err := object(newData)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBadPending, path, err)
	}
	had := len(w.lines)
	if err := words(old, new); err != nil {
		return err
	}
	if len(w.lines) == had && before == nil {
		w.say("%s: begins with an empty %s", w.role, path)
	}
	return w.entry(path, before, after)
}

// content reads a small target's document and checks its hash.
func (w *wording) content(ctx context.Context, path string, tf *metadata.TargetFiles, limit int64) ([]byte, error) {
	if tf == nil {
		return nil, nil
	}
	return w.readDocument(ctx, path, tf, limit)
}

// entry shows what a target's entry holds beside length and sha256.
func (w *wording) entry(path string, before, after *metadata.TargetFiles) error {
	lines, err := compared(entryFields(before), entryFields(after))
	if err != nil {
		return err
	}
	if len(lines) > 0 {
		w.say("%s: entry of %s", w.role, path)
		w.detail(lines...)
	}
	return nil
}

func entryFields(tf *metadata.TargetFiles) map[string]any {
	fields := make(map[string]any)
	if tf == nil {
		return fields
	}
	maps.Copy(fields, tf.UnrecognizedFields)
	if tf.Custom != nil {
		fields["custom"] = tf.Custom
	}
	for alg, sum := range tf.Hashes {
		if alg != "sha256" {
			fields["hashes."+alg] = sum
		}
	}
	return fields
}

// file is about any other target: a patch, or something of others.
func (w *wording) file(ctx context.Context, path string, before, after *metadata.TargetFiles) error {
	name := path
	product, version, platform, file, isPatch := layout.SplitPatchPath(path)
	if isPatch {
		name = fmt.Sprintf("patch %s (%s)", patch.MakeID(product, version, platform), file)
	}
	switch {
	case after == nil:
		w.say("%s: removes %s, %s", w.role, name, sizeAndHash(before))
		return nil
	case before == nil:
		w.say("%s: adds %s, %s", w.role, name, sizeAndHash(after))
	default:
		w.say("%s: changes %s from %s to %s", w.role, name, sizeAndHash(before), sizeAndHash(after))
	}
	lines, err := compared(entryFields(before), entryFields(after))
	if err != nil {
		return err
	}
	w.detail(lines...)
	if strings.HasPrefix(path, "patches/") || after.Length > maxShown {
		return nil
	}
	return w.json(ctx, path, before, after)
}

// json shows the content of a document that this version has no words for.
func (w *wording) json(ctx context.Context, path string, before, after *metadata.TargetFiles) error {
	newData, err := w.content(ctx, path, after, maxShown)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadPending, err)
	}
	new, err := object(newData)
	if err != nil {
		return nil //nolint:nilerr // no JSON: its length and hash have been shown
	}
	old := map[string]any{}
	if data, err := w.content(ctx, path, before, maxShown); err == nil && data != nil {
		if had, err := object(data); err == nil {
			old = had
		}
	}
	lines, err := compared(old, new)
	if err != nil {
		return err
	}
	w.detail(lines...)
	return nil
}

func sizeAndHash(tf *metadata.TargetFiles) string {
	return fmt.Sprintf("%d bytes, sha256 %s", tf.Length, tf.Hashes["sha256"])
}

// plan puts a ring's plan into words.
func (w *wording) plan(ctx context.Context, ring string, old, new map[string]any) error {
	was, is := entriesBy(old["entries"], "patch"), entriesBy(new["entries"], "patch")
	for _, path := range unionKeys(was, is) {
		before, after := was[path], is[path]
		product, version, platform, file, _ := layout.SplitPatchPath(path)
		name := fmt.Sprintf("%s (%s)", patch.MakeID(product, version, platform), file)
		switch {
		case after == nil:
			w.say("ring %s: no longer approves %s", ring, name)
		case before == nil:
			w.say("ring %s: approves %s for its machines, %s", ring, name, when(after))
			w.detail(fmt.Sprintf("content sha256 %v, description sha256 %v", after["sha256"], after["custom_sha256"]))
			w.detail(w.vouched(ctx, product, path, after))
			rest := maps.Clone(after)
			for _, said := range []string{"patch", "sha256", "custom_sha256", "not_before", "steps"} {
				delete(rest, said)
			}
			fields, err := flattened(rest)
			if err != nil {
				return err
			}
			w.detail(differences(nil, fields)...)
		default:
			lines, err := compared(before, after)
			if err != nil {
				return err
			}
			if len(lines) == 0 {
				continue
			}
			w.say("ring %s: changes the rollout of %s; it is %s", ring, name, when(after))
			w.detail(lines...)
			w.detail(w.vouched(ctx, product, path, after))
		}
	}
	if err := w.holds(ring, old["holds"], new["holds"]); err != nil {
		return err
	}
	w.lifts(ring, old["lifts"], new["lifts"])
	oldMin, newMin := asObject(old["minimum_safe"]), asObject(new["minimum_safe"])
	for _, product := range unionKeys(oldMin, newMin) {
		switch before, after := oldMin[product], newMin[product]; {
		case after == nil:
			w.say("ring %s: product %s has no minimum-safe version any more (it was %v)", ring, product, before)
		case before == nil:
			w.say("ring %s: product %s must not fall below version %v: machines above an approved version may go down to it", ring, product, after)
		case before != after:
			w.say("ring %s: product %s must not fall below version %v (it was %v)", ring, product, after, before)
		}
	}
	return w.otherFields("plan of ring "+ring, old, new, "entries", "holds", "lifts", "minimum_safe")
}

// holds says which patches the ring leaves as they are.
func (w *wording) holds(ring string, old, new any) error {
	was, is := entriesBy(old, "patch"), entriesBy(new, "patch")
	for _, path := range unionKeys(was, is) {
		lines, err := compared(was[path], is[path])
		if err != nil {
			return err
		}
		if len(lines) == 0 {
			continue
		}
		product, version, platform, file, _ := layout.SplitPatchPath(path)
		name := fmt.Sprintf("%s (%s)", patch.MakeID(product, version, platform), file)
		if is[path] == nil {
			w.say("ring %s: no longer says that it leaves %s as it is", ring, name)
			continue
		}
		w.say("ring %s: leaves %s as it is for now: %v", ring, name, is[path]["reason"])
		w.detail(lines...)
	}
	return nil
}

// policies says what is demanded of rings from now on.
func (w *wording) policies() error {
	if w.role != layout.RoleTargets {
		return nil
	}
	var trees [2]map[string]any
	for i, t := range []*metadata.TargetsType{w.before, w.after} {
		if _, err := policiesOf(t); err != nil {
			return fmt.Errorf("%w: %w", ErrBadPending, err)
		}
		data, err := json.Marshal(t.UnrecognizedFields[policiesField])
		if err != nil {
			return err
		}
		if string(data) == "null" {
			data = nil
		}
		if trees[i], err = object(data); err != nil {
			return fmt.Errorf("%w: policies: %w", ErrBadPending, err)
		}
	}
	was, is := entriesBy(trees[0]["policies"], "ring"), entriesBy(trees[1]["policies"], "ring")
	all, err := policiesOf(w.after)
	if err != nil {
		return err
	}
	for _, ring := range unionKeys(was, is) {
		lines, err := compared(was[ring], is[ring])
		if err != nil {
			return err
		}
		if len(lines) > 0 {
			w.say("%s: policy of ring %s: %s", w.role, ring, all.Of(ring))
			w.detail(lines...)
		}
	}
	return w.otherFields("policies", trees[0], trees[1], "policies")
}

// vouched says what the product's role signed about an approved patch.
func (w *wording) vouched(ctx context.Context, product, path string, entry map[string]any) string {
	t, err := w.read(ctx, layout.ProductRole(product))
	if err != nil || t.Targets[path] == nil {
		return "ATTENTION: no product vouches for this patch, so no machine installs it"
	}
	tf := t.Targets[path]
	if tf.Hashes["sha256"].String() != entry["sha256"] {
		return "ATTENTION: product " + product + " vouches for other content of this patch, so no machine installs it"
	}
	if tf.Custom == nil {
		return "ATTENTION: product " + product + " does not describe this patch"
	}
	digest, err := patch.Digest(*tf.Custom)
	if err != nil || digest != entry["custom_sha256"] {
		return "ATTENTION: product " + product + " vouches for other recipes of this patch, so no machine installs it"
	}
	p, err := patch.FromCustom(*tf.Custom)
	if err != nil || p == nil {
		return "ATTENTION: product " + product + " does not describe this patch"
	}
	line := fmt.Sprintf("product %s signed it: %d bytes, kind %s", product, tf.Length, p.Kind)
	if p.Severity != "" {
		line += ", severity " + string(p.Severity)
	}
	if len(p.CVEs) > 0 {
		line += ", " + strings.Join(p.CVEs, " ")
	}
	if p.Title != "" {
		line += fmt.Sprintf(", %q", p.Title)
	}
	return line
}

// when says from when on how many machines take an approved patch.
func when(entry map[string]any) string {
	from, _ := entry["not_before"].(string)
	pause := ""
	if entry["paused"] == true {
		pause = fmt.Sprintf("PAUSED (%v), else ", entry["paused_reason"])
	}
	if entry["expedite"] == true {
		return fmt.Sprintf("%sALL of them at once from %s, past steps and windows: %v", pause, from, entry["expedite_reason"])
	}
	steps, _ := entry["steps"].([]any)
	if len(steps) == 0 {
		return pause + "all of them from " + from
	}
	parts := make([]string, 0, len(steps))
	for _, s := range steps {
		step := asObject(s)
		at, _ := step["at"].(json.Number)
		seconds, err := at.Int64()
		percent, ok := step["percent"].(json.Number)
		ramp := step["ramp"] == true
		if !ok || err != nil || len(step) != 2 && !(ramp && len(step) == 3) {
			parts = append(parts, compact(s))
			continue
		}
		words := fmt.Sprintf("%s %% after %s", percent, time.Duration(seconds)*time.Second)
		if ramp {
			words = "growing evenly to " + words
		}
		parts = append(parts, words)
	}
	return fmt.Sprintf("%sfrom %s: %s", pause, from, strings.Join(parts, ", "))
}

func (w *wording) lifts(ring string, old, new any) {
	before, after := asStrings(old), asStrings(new)
	for _, id := range after {
		if !slices.Contains(before, id) {
			w.say("ring %s: goes on in spite of halt %s", ring, id)
		}
	}
	for _, id := range before {
		if !slices.Contains(after, id) {
			w.say("ring %s: halt %s holds again", ring, id)
		}
	}
}

// halts puts the halt list into words.
func (w *wording) halts(old, new map[string]any) error {
	was, is := entriesBy(old["halts"], "id"), entriesBy(new["halts"], "id")
	for _, id := range unionKeys(was, is) {
		before, after := was[id], is[id]
		if before != nil && after != nil && compact(before) == compact(after) {
			continue
		}
		h := after
		verb := "stops"
		switch {
		case after == nil:
			h, verb = before, "takes the halt from the list (machines that have seen it go on obeying) of"
		case before != nil:
			verb = "changes what it says about stopping"
		}
		what := "everything"
		if product, ok := h["product"].(string); ok {
			what = "product " + product
		} else if sum, ok := h["sha256"].(string); ok {
			what = "the file with sha256 " + sum
		}
		w.say("halt %s: %s %s, since %v, by %v: %v", id, verb, what, h["since"], h["by"], h["reason"])
	}
	return w.otherFields("halt list", old, new, "halts")
}

// otherFields shows the fields of a document that were not put into words.
func (w *wording) otherFields(what string, old, new map[string]any, said ...string) error {
	old, new = maps.Clone(old), maps.Clone(new)
	for _, name := range append(said, "format", "ring") { // checked by the parser
		delete(old, name)
		delete(new, name)
	}
	lines, err := compared(old, new)
	if err != nil {
		return err
	}
	for _, line := range lines {
		w.say("%s: %s", what, line)
	}
	return nil
}

// newRoot says who is trusted with a repository that is to be made.
func (w *wording) newRoot() error {
	r := &w.root.Signed
	used := make(map[string]bool)
	w.say("a NEW repository, whose root is trusted from now on")
	for _, name := range []string{layout.RoleRoot, layout.RoleTargets, layout.RoleSnapshot, layout.RoleTimestamp} {
		role := r.Roles[name]
		w.say("root: role %s: %d of %d signatures", name, role.Threshold, len(role.KeyIDs))
		for _, id := range role.KeyIDs {
			used[id] = true
			w.detail("key " + fingerprint(id))
		}
		rest, err := flattened(role.UnrecognizedFields)
		if err != nil {
			return err
		}
		w.detail(differences(nil, rest)...)
	}
	w.keys(nil, r.Keys, used)
	fields := unknownFields(r.UnrecognizedFields, w.role, true)
	if r.SpecVersion != metadata.SPECIFICATION_VERSION {
		fields["spec_version"] = r.SpecVersion
	}
	rest, err := flattened(fields)
	if err != nil {
		return err
	}
	for _, line := range differences(nil, rest) {
		w.say("root: field %s", line)
	}
	return nil
}

// unknownFields are the fields of a role's signed part that go-tuf does not
// know, but the time of signing, and a new role's lifetime if it is the usual one.
func unknownFields(unknown map[string]any, role string, isNew bool) map[string]any {
	fields := make(map[string]any)
	for name, value := range unknown {
		usual := isNew && name == lifetimeField && value == DefaultLifetime(role).String()
		if name != tuf.SignedAtField && !usual {
			fields[name] = value
		}
	}
	return fields
}

// delegations says who may speak for what from now on.
func (w *wording) delegations() error {
	before, after := delegatedRoles(w.before), delegatedRoles(w.after)
	for _, name := range unionKeys(before, after) {
		old, new := before[name], after[name]
		switch {
		case new == nil:
			w.say("%s: role %s is taken away: nobody speaks for it any more", w.role, name)
			continue
		case old == nil:
			w.say("%s: new role %s: %d of %d signatures, speaks for %s", w.role, name, new.Threshold, len(new.KeyIDs), strings.Join(new.Paths, " "))
			for _, id := range new.KeyIDs {
				w.detail("key " + fingerprint(id))
			}
			old = &metadata.DelegatedRole{Name: name, Threshold: new.Threshold, KeyIDs: new.KeyIDs, Paths: new.Paths, Terminating: true}
		case compact(old) == compact(new):
			continue
		default:
			w.say("%s: role %s changes: %d of %d signatures (before: %d of %d)", w.role, name, new.Threshold, len(new.KeyIDs), old.Threshold, len(old.KeyIDs))
			for _, id := range new.KeyIDs {
				if !slices.Contains(old.KeyIDs, id) {
					w.detail("new key " + fingerprint(id))
				}
			}
			for _, id := range old.KeyIDs {
				if !slices.Contains(new.KeyIDs, id) {
					w.detail("no longer key " + fingerprint(id))
				}
			}
		}
		lines, err := compared(restOfRole(old), restOfRole(new))
		if err != nil {
			return err
		}
		w.detail(lines...)
	}
	if b, a := roleOrder(w.before), roleOrder(w.after); !inOrder(b, a) {
		w.say("%s: asks the roles in another order: %s", w.role, strings.Join(a, " "))
	}
	used := make(map[string]bool)
	for _, r := range after {
		for _, id := range r.KeyIDs {
			used[id] = true
		}
	}
	w.keys(declaredKeys(w.before), declaredKeys(w.after), used)
	return nil
}

// keys looks at the keys that are declared. A key's id is the hash of its
// declaration, so the fingerprints beside the roles say all about those that are
// as they should be.
func (w *wording) keys(before, after map[string]*metadata.Key, used map[string]bool) {
	for _, id := range unionKeys(before, after) {
		key := after[id]
		if key == nil {
			w.say("%s: no longer declares key %s", w.role, fingerprint(id))
			continue
		}
		if before[id] != nil && compact(before[id]) == compact(key) {
			continue
		}
		fresh := *key
		if own, err := fresh.ID(); err != nil || own != id {
			w.say("ATTENTION: %s declares under the name %s what is not that key: %s", w.role, fingerprint(id), compact(key))
		} else if !used[id] {
			w.say("%s: declares key %s, which signs for no role", w.role, fingerprint(id))
		}
	}
}

// restOfRole is what a delegation holds beside name, keys and threshold.
func restOfRole(r *metadata.DelegatedRole) map[string]any {
	rest := map[string]any{"terminating": r.Terminating, "paths": r.Paths}
	if len(r.PathHashPrefixes) > 0 {
		rest["path_hash_prefixes"] = r.PathHashPrefixes
	}
	maps.Copy(rest, r.UnrecognizedFields)
	return rest
}

func delegatedRoles(t *metadata.TargetsType) map[string]*metadata.DelegatedRole {
	roles := make(map[string]*metadata.DelegatedRole)
	if t.Delegations != nil {
		for i := range t.Delegations.Roles {
			roles[t.Delegations.Roles[i].Name] = &t.Delegations.Roles[i]
		}
	}
	return roles
}

func roleOrder(t *metadata.TargetsType) []string {
	var names []string
	if t.Delegations != nil {
		for _, r := range t.Delegations.Roles {
			names = append(names, r.Name)
		}
	}
	return names
}

// inOrder reports whether the names that both lists have stand in the same
// order in both, each once.
func inOrder(before, after []string) bool {
	common := func(of, with []string) []string {
		return slices.DeleteFunc(slices.Clone(of), func(n string) bool { return !slices.Contains(with, n) })
	}
	return slices.Equal(common(before, after), common(after, before))
}

func declaredKeys(t *metadata.TargetsType) map[string]*metadata.Key {
	if t.Delegations == nil {
		return nil
	}
	return t.Delegations.Keys
}

// fingerprint groups the first 128 bits of a key id for reading aloud.
func fingerprint(keyID string) string {
	const groups, width = 8, 4
	if !layout.IsSHA256(keyID) {
		return clean(keyID)
	}
	parts := make([]string, groups)
	for i := range parts {
		parts[i] = keyID[i*width : (i+1)*width]
	}
	return strings.Join(parts, " ")
}

// object reads a JSON object; numbers stay as they are written.
func object(data []byte) (map[string]any, error) {
	if data == nil {
		return map[string]any{}, nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var o map[string]any
	if err := dec.Decode(&o); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, errors.New("it is null")
	}
	return o, nil
}

func asObject(v any) map[string]any {
	o, _ := v.(map[string]any)
	return o
}

func asStrings(v any) []string {
	var list []string
	all, _ := v.([]any)
	for _, e := range all {
		if s, ok := e.(string); ok {
			list = append(list, s)
		}
	}
	return list
}

// entriesBy indexes a list of objects by one of their fields.
func entriesBy(list any, field string) map[string]map[string]any {
	by := make(map[string]map[string]any)
	all, _ := list.([]any)
	for _, e := range all {
		o := asObject(e)
		if name, ok := o[field].(string); ok {
			by[name] = o
		}
	}
	return by
}

func unionKeys[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	if all == nil {
		all = make(map[string]V)
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

// flattened maps each place in v to what is there: "install.timeout" → "60".
func flattened(v any) (map[string]string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return nil, err
	}
	flat := make(map[string]string)
	flatten(flat, "", tree)
	return flat, nil
}

func flatten(flat map[string]string, place string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 && place != "" {
			flat[place] = "{}"
		}
		for name, value := range v {
			sub := name
			if place != "" {
				sub = place + "." + name
			}
			flatten(flat, sub, value)
		}
		return
	case []any:
		for _, e := range v {
			if _, ok := e.(map[string]any); !ok {
				continue
			}
			for i, e := range v {
				flatten(flat, fmt.Sprintf("%s[%d]", place, i), e)
			}
			return
		}
	}
	flat[place] = compact(v)
}

func compact(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// compared is differences of two values, as their JSON tells them apart.
func compared(before, after any) ([]string, error) {
	old, err := flattened(before)
	if err != nil {
		return nil, err
	}
	new, err := flattened(after)
	if err != nil {
		return nil, err
	}
	return differences(old, new), nil
}

// differences lists, by place, what is other in after than in before.
func differences(before, after map[string]string) []string {
	var lines []string
	for _, place := range unionKeys(before, after) {
		old, had := before[place]
		new, has := after[place]
		switch {
		case !had:
			lines = append(lines, fmt.Sprintf("%s = %s", place, new))
		case !has:
			lines = append(lines, fmt.Sprintf("%s is gone (it was %s)", place, old))
		case old != new:
			lines = append(lines, fmt.Sprintf("%s = %s (it was %s)", place, new, old))
		}
	}
	return lines
}

// Exact lists, by role, each field of the signed part that differs from what is
// published.
func (p *Pending) Exact() (map[string][]string, error) {
	all := make(map[string][]string)
	for name, part := range p.parts {
		before := map[string]string{}
		if p.draft.base != nil && p.draft.base.trusted.Targets[name] != nil {
			var err error
			if before, err = flattened(p.draft.base.trusted.Targets[name].Signed); err != nil {
				return nil, err
			}
		}
		var signed any
		if part.root != nil {
			signed = part.root.Signed
		} else {
			signed = part.md.Signed
		}
		after, err := flattened(signed)
		if err != nil {
			return nil, err
		}
		lines := differences(before, after)
		for i := range lines {
			lines[i] = printable(lines[i])
		}
		all[name] = lines
	}
	return all, nil
}
