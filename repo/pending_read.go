package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// Pending reads and verifies a waiting change, and says in words what it does:
// from the metadata that is to be signed, against what is published now. An
// unknown id is fs.ErrNotExist; what is no change is ErrBadPending.
func (r *Repository) Pending(ctx context.Context, id string) (*Pending, error) {
	base, err := r.loadAny(ctx)
	if err != nil {
		return nil, err
	}
	return r.pendingOn(ctx, base, id)
}

// loadAny is load, but for a place where no repository is yet: then the state is
// nil, and no error.
func (r *Repository) loadAny(ctx context.Context) (*state, error) {
	base, err := r.load(ctx)
	if errors.Is(err, ErrNoRepository) {
		return nil, nil
	}
	return base, err
}

// Pendings lists the waiting changes, oldest first, and those that are closed
// too if asked for. One that is bad is listed as such. To sign one, read it with
// Pending.
func (r *Repository) Pendings(ctx context.Context, closed bool) ([]*Pending, error) {
	base, err := r.loadAny(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	objects := 0
	errMany := errors.New("too many")
	err = r.store.List(ctx, layout.PendingDir+"/", func(i store.Info) error {
		if id, ok := layout.ParsePendingChange(i.Name); ok {
			ids = append(ids, id)
		}
		if objects++; len(ids) > maxPending || objects > 100*maxPending {
			return errMany
		}
		return nil
	})
	if errors.Is(err, errMany) {
		return nil, fmt.Errorf("%w: more than %d changes or %d objects lie in %s/", ErrBadPending, maxPending, 100*maxPending, layout.PendingDir)
	}
	if err != nil {
		return nil, fmt.Errorf("list changes: %w", err)
	}
	if base == nil && len(ids) == 0 {
		return nil, fmt.Errorf("%w in %s: run init first, or check --repo", ErrNoRepository, r.store)
	}
	list := []*Pending{}
	for _, id := range ids {
		p, err := r.pendingOn(ctx, base, id)
		if errors.Is(err, ErrBadPending) {
			p, err = &Pending{ID: id, State: PendingBad, Why: []string{clean(err.Error())}, Roles: []PendingRole{}}, nil
		}
		if err != nil {
			return nil, err
		}
		if closed || p.Closed == nil && p.State != PendingPublished {
			p.draft, p.parts = nil, nil // they may be large, and many
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b *Pending) int { return a.Created.Compare(b.Created) })
	return list, nil
}

// pendingOn reads a change and compares it with one published state.
func (r *Repository) pendingOn(ctx context.Context, base *state, id string) (*Pending, error) {
	p, err := r.readPending(ctx, base, id)
	if err != nil {
		return nil, err
	}
	if err := p.judge(ctx); err != nil {
		return nil, err
	}
	if p.Compared.Timestamp > 0 && !p.Compared.Expires.After(r.now()) {
		p.Notes = append(p.Notes, "what this is compared with has expired: something newer may be published")
	}
	for _, st := range p.Roles {
		life := roleLifetime(st.Role, *p.parts[st.Role].head().fields)
		if st.Expires.Sub(r.now()) > life+24*time.Hour {
			p.Notes = append(p.Notes, fmt.Sprintf("ATTENTION: role %s would be valid until %s, which is longer than its lifetime of %s", st.Role, st.Expires.Format(time.RFC3339), life))
		}
	}
	words, err := p.draft.describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("change %s: %w", id, err)
	}
	for i := range p.Roles {
		role := &p.Roles[i]
		role.Words = append([]string{}, words[role.Role]...)
		if role.Role == layout.RoleRoot {
			continue
		}
		if role.Targets, err = p.draft.changes(ctx, role.Role); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// readPending reads the parts of a change, and the signatures that count.
func (r *Repository) readPending(ctx context.Context, base *state, id string) (*Pending, error) {
	if err := layout.CheckPendingID(id); err != nil {
		return nil, err
	}
	data, err := readBounded(ctx, r.store, layout.PendingChange(id), maxDescriptor)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("change %s: %w in %s", id, fs.ErrNotExist, r.store)
	}
	if err != nil {
		return nil, fmt.Errorf("change %s: %w", id, err)
	}
	desc, err := parseDescriptor(data, id)
	if err != nil {
		return nil, fmt.Errorf("change %s: %w", id, err)
	}
	p := &Pending{
		ID: id, Title: clean(desc.Title), By: clean(desc.By), Created: desc.Created, Rebased: desc.Rebased, Roles: []PendingRole{},
		desc: desc, base: base, parts: make(map[string]*pendingPart),
	}
	switch {
	case desc.makes():
		p.draft = r.makingDraft(desc)
	case base == nil:
		return nil, fmt.Errorf("change %s: %w in %s", id, ErrNoRepository, r.store)
	default:
		p.draft = r.draftOn(base)
		p.Compared = Compared{base.trusted.Timestamp.Signed.Version, base.trusted.Timestamp.Signed.Expires}
	}
	for _, role := range desc.Roles {
		part, err := r.readPart(ctx, id, role)
		if err != nil {
			return nil, fmt.Errorf("change %s: %w", id, err)
		}
		p.parts[role.Role] = part
		if part.root != nil {
			p.draft.root = part.root
		} else {
			p.draft.roles[role.Role] = part.md
		}
	}
	for _, role := range desc.Roles { // now that a new delegator is known
		if err := p.readSignatures(ctx, r, p.parts[role.Role]); err != nil {
			return nil, fmt.Errorf("change %s: %w", id, err)
		}
	}
	data, err = readBounded(ctx, r.store, layout.PendingClosed(id), maxSignatureFile)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		p.Closed, err = parseClosing(data)
	}
	if err != nil {
		return nil, fmt.Errorf("change %s: %w", id, err)
	}
	return p, nil
}

func (r *Repository) readPart(ctx context.Context, id string, role descriptorRole) (*pendingPart, error) {
	data, err := readBounded(ctx, r.store, layout.PendingRole(id, role.Role), maxMetadata)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the metadata of role %s is missing", ErrBadPending, role.Role)
	}
	if err != nil {
		return nil, err
	}
	part := &pendingPart{desc: role}
	if err := part.parse(data); err != nil {
		return nil, fmt.Errorf("role %s: %w", role.Role, err)
	}
	if sum := sha256.Sum256(part.payload); hex.EncodeToString(sum[:]) != role.SHA256 || *part.head().version != role.To {
		return nil, fmt.Errorf("%w: the metadata of role %s is not that which the change names", ErrBadPending, role.Role)
	}
	return part, nil
}

// readSignatures collects the signatures of the keys that the role's delegator
// names now.
func (p *Pending) readSignatures(ctx context.Context, r *Repository, part *pendingPart) error {
	role := part.desc.Role
	st := PendingRole{
		Role: role, From: part.desc.From, To: part.desc.To, Expires: *part.head().expires, SHA256: part.desc.SHA256,
		Signed: []string{}, Unsigned: []string{},
	}
	ids, threshold, err := p.draft.authority(ctx, role)
	if errors.Is(err, ErrNotTrusted) { // judge says that nobody delegates to it
		ids, threshold = nil, 1
	} else if err != nil {
		return err
	}
	if part.keys, err = p.draft.declared(ctx, role); err != nil {
		return err
	}
	st.Threshold = threshold
	seen := make(map[string]bool) // public keys: one under two ids counts once
	for _, id := range ids {
		sig, err := r.readSignature(ctx, p.ID, part, id)
		switch {
		case err == nil && !seen[part.keys[id].Value.PublicKey]:
			seen[part.keys[id].Value.PublicKey] = true
			part.signatures = append(part.signatures, metadata.Signature{KeyID: id, Signature: sig})
			st.Signed = append(st.Signed, id)
		case err == nil: // the same key
		case errors.Is(err, fs.ErrNotExist):
			st.Unsigned = append(st.Unsigned, id)
		case errors.Is(err, ErrBadPending):
			st.Unsigned = append(st.Unsigned, id)
			p.Notes = append(p.Notes, fmt.Sprintf("what lies in the place of the signature of key %.8s for role %s does not count: %s", id, role, clean(err.Error())))
		default:
			return err
		}
	}
	for _, id := range part.desc.KeyIDs {
		if slices.Contains(ids, id) || !layout.IsSHA256(id) {
			continue
		}
		if _, err := r.store.Stat(ctx, layout.PendingSignature(p.ID, role, id)); err == nil {
			p.Notes = append(p.Notes, fmt.Sprintf("the signature of key %.8s no longer counts: role %s does not name that key any more", id, role))
		}
	}
	st.Missing = max(0, threshold-len(st.Signed))
	p.Roles = append(p.Roles, st)
	return nil
}

// readSignature reads and verifies the signature of one key. It returns
// fs.ErrNotExist if there is none, and ErrBadPending if it is not one.
func (r *Repository) readSignature(ctx context.Context, id string, part *pendingPart, keyID string) ([]byte, error) {
	if !layout.IsSHA256(keyID) { // no key of ours
		return nil, fs.ErrNotExist
	}
	data, err := readBounded(ctx, r.store, layout.PendingSignature(id, part.desc.Role, keyID), maxSignatureFile)
	if err != nil {
		return nil, err
	}
	sig, err := parseSignature(data, keyID)
	if err != nil {
		return nil, err
	}
	if err := verifySignature(part.keys[keyID], part.payload, sig); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadPending, err)
	}
	return sig, nil
}

// judge says where the change stands.
func (p *Pending) judge(ctx context.Context) error {
	done, err := p.published(ctx)
	if err != nil {
		return err
	}
	switch {
	case done:
		p.State = PendingPublished
		return nil
	case p.Closed != nil && p.Closed.Outcome == outcomePublished && p.overtaken():
		p.State = PendingPublished // and others have published on top of it
		return nil
	case p.Closed != nil && p.Closed.Outcome == outcomeAbandoned:
		p.State = PendingAbandoned
		p.Why = append(p.Why, strings.TrimSuffix("it was abandoned by "+p.Closed.By+": "+p.Closed.Reason, ": "))
		return nil
	case p.Closed != nil && p.Closed.Outcome == outcomeRebased:
		p.State = PendingRebased
		p.Why = append(p.Why, "change "+p.Closed.Next+" took its place")
		return nil
	}
	p.Closed = nil // it says what is not so
	if p.desc.makes() && p.base != nil {
		p.Why = append(p.Why, "another repository was made here meanwhile")
	}
	for i := range p.Roles {
		m, err := p.misfit(ctx, p.parts[p.Roles[i].Role])
		if err != nil {
			return err
		}
		p.Why = append(p.Why, m.why...)
	}
	switch {
	case len(p.Why) > 0:
		p.State = PendingStale
	case p.Complete():
		p.State = PendingReady
	default:
		p.State = PendingWaiting
	}
	return nil
}

// published reports whether what the change holds is what is published.
func (p *Pending) published(ctx context.Context) (bool, error) {
	if p.base == nil {
		return false, nil
	}
	for _, part := range p.parts {
		if !p.desc.makes() && p.draft.version(part.desc.Role) != part.desc.To {
			return false, nil
		}
		_, err := p.draft.sameSigned(ctx, layout.MetadataObject(part.desc.Role, part.desc.To), part)
		if errors.Is(err, ErrStale) || errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("role %s: %w", part.desc.Role, err)
		}
	}
	return true, nil
}

// overtaken reports whether all its roles are published in its version or a
// later one.
func (p *Pending) overtaken() bool {
	if p.desc.makes() {
		return false
	}
	for _, part := range p.parts {
		if p.draft.version(part.desc.Role) < part.desc.To {
			return false
		}
	}
	return true
}

// misfit is why a role no longer fits what is published.
type misfit struct {
	why     []string
	content bool // its bytes have to be new, not only its signatures
}

func (m *misfit) say(content bool, format string, args ...any) {
	m.why = append(m.why, fmt.Sprintf(format, args...))
	m.content = m.content || content
}

func (p *Pending) misfit(ctx context.Context, part *pendingPart) (m misfit, err error) {
	role, d := part.desc.Role, p.draft
	if now := d.version(role); now != part.desc.From {
		m.say(true, "role %s was published in version %d meanwhile, and this is made on top of version %d", role, now, part.desc.From)
		return m, nil
	}
	ids, threshold, err := d.authority(ctx, role)
	switch {
	case errors.Is(err, ErrNotTrusted):
		m.say(true, "nobody delegates to role %s any more", role)
		return m, nil
	case err != nil:
		return m, err
	case threshold != part.desc.Threshold || !slices.Equal(ids, part.desc.KeyIDs):
		m.say(false, "role %s has other keys or another threshold by now", role)
	}
	if !part.head().expires.After(d.repo.now()) {
		m.say(true, "its metadata of role %s has expired", role)
	}
	taken, err := d.taken(ctx, part)
	if taken {
		m.say(true, "version %d of role %s is taken by another change", part.desc.To, role)
	}
	return m, err
}

// taken reports whether something else lies where the part is to be published.
// A publish of this very change may have been cut off.
func (d *draft) taken(ctx context.Context, part *pendingPart) (bool, error) {
	name := layout.MetadataObject(part.desc.Role, part.desc.To)
	_, err := d.sameSigned(ctx, name, part)
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, ErrStale):
		return true, nil
	}
	return false, fmt.Errorf("look for %s: %w", name, err)
}

// readBounded reads an object of at most limit bytes. A larger one is
// ErrBadPending.
func readBounded(ctx context.Context, s store.Reader, name string, limit int64) ([]byte, error) {
	rc, _, err := s.Open(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	data, err := io.ReadAll(io.LimitReader(rc, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrBadPending, name, limit)
	}
	return data, nil
}
