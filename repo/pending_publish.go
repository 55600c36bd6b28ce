package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// PendingSignature is a signature that was added to a change.
type PendingSignature struct {
	Role  string `json:"role"`
	KeyID string `json:"keyid"`
}

// SignPending signs a waiting change, as p shows it, with the keys at hand that
// its roles wait for, and stores the signatures. All are made before the first
// is stored. If there is no such key, that is ErrKeys, and if all of them have
// signed already, ErrExists.
func (r *Repository) SignPending(ctx context.Context, p *Pending) ([]PendingSignature, error) {
	if err := p.Open(); err != nil {
		return nil, err
	}
	type made struct {
		part *pendingPart
		sig  metadata.Signature
	}
	var sigs []made
	for _, st := range p.Roles {
		part := p.parts[st.Role]
		if part == nil {
			return nil, fmt.Errorf("change %s was listed, not read", p.ID)
		}
		some, _, err := signPayload(ctx, part.payload, st.Role, st.Unsigned, st.Missing, r.keys)
		if err != nil {
			return nil, err
		}
		for _, s := range some {
			sigs = append(sigs, made{part, s})
		}
	}
	if len(sigs) == 0 {
		return nil, p.whyNoSignature(ctx, r.keys)
	}
	var added []PendingSignature
	for _, m := range sigs {
		if err := r.putSignature(ctx, p.ID, m.part, m.sig); err != nil {
			return added, err
		}
		added = append(added, PendingSignature{m.part.desc.Role, m.sig.KeyID})
		logger(ctx).Info().Str("change", p.ID).Str("role", m.part.desc.Role).Str("key", m.sig.KeyID).Msg("signed")
	}
	return added, nil
}

// whyNoSignature says why no key at hand could add a signature.
func (p *Pending) whyNoSignature(ctx context.Context, keys Keys) error {
	if p.Complete() {
		return fmt.Errorf("change %s has all the signatures it needs: %w", p.ID, ErrExists)
	}
	var waits []string
	for _, st := range p.Roles {
		for _, id := range st.Signed {
			if _, err := keys(ctx, id); err == nil {
				return fmt.Errorf("signature of key %.8s for role %s %w: the change waits for others", id, st.Role, ErrExists)
			}
		}
		if st.Missing > 0 {
			var ids []string
			for _, id := range st.Unsigned {
				ids = append(ids, id[:min(8, len(id))])
			}
			waits = append(waits, fmt.Sprintf("role %s waits for %d of the keys %s", st.Role, st.Missing, strings.Join(ids, ", ")))
		}
	}
	return fmt.Errorf("%w: none of the keys at hand is asked for: %s", ErrKeys, strings.Join(waits, "; "))
}

// PublishPending publishes a change that has all its signatures, with the keys
// of snapshot and timestamp at hand. Signatures that are missing are ErrKeys, a
// change that no longer fits is ErrStale, one that is published ErrExists, and
// one that was given up ErrClosed.
func (r *Repository) PublishPending(ctx context.Context, id string, dryRun bool) (*Change, error) {
	change, err := r.onNewest(ctx, func(base *state) (*draft, bool, error) {
		d, err := r.signedDraft(ctx, base, id)
		if err == nil && dryRun {
			err = d.planSigned(ctx)
		}
		return d, !dryRun, err
	})
	if errors.Is(err, ErrNoRepository) {
		change, err = r.publishNew(ctx, id, dryRun)
	}
	if errors.Is(err, ErrExists) || err == nil && !dryRun {
		// A publish that was cut off right after the commit is finished here.
		if cerr := r.close(ctx, id, Closing{Outcome: outcomePublished}); cerr != nil && err == nil {
			logger(ctx).Warn().Err(cerr).Str("change", id).Msg("published, but its closing could not be written down")
		}
	}
	return change, err
}

// signedDraft is a change, ready to be committed on top of base.
func (r *Repository) signedDraft(ctx context.Context, base *state, id string) (*draft, error) {
	p, err := r.pendingOn(ctx, base, id)
	if err != nil {
		return nil, err
	}
	if err := p.Open(); err != nil {
		return nil, err
	}
	if err := p.lacks(); err != nil {
		return nil, err
	}
	if err := p.contents(ctx); err != nil {
		return nil, err
	}
	d := p.draft
	d.signed = p.parts
	return d, nil
}

// lacks is ErrKeys, and who is to sign, unless all signatures are there.
//
// A ring's policy that lets no author approve belongs here, and in
// readSignatures: a signature that is there, and does not count.
func (p *Pending) lacks() error {
	var lines []string
	for _, st := range p.Roles {
		if st.Missing > 0 {
			var ids []string
			for _, id := range st.Unsigned {
				ids = append(ids, fingerprint(id))
			}
			lines = append(lines, fmt.Sprintf("role %s has %d of %d signatures, and waits for: %s", st.Role, len(st.Signed), st.Threshold, strings.Join(ids, ", ")))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("%w: change %s: %s", ErrKeys, p.ID, strings.Join(lines, "; "))
}

// contents makes sure that what the change adds lies in the store.
func (p *Pending) contents(ctx context.Context) error {
	for _, st := range p.Roles {
		for _, t := range st.Targets {
			if t.Action == "remove" {
				continue
			}
			info, err := p.draft.repo.store.Stat(ctx, layout.TargetObject(t.Path, t.SHA256))
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: the content of %s is missing in the store", ErrBadPending, t.Path)
			}
			if err != nil {
				return fmt.Errorf("look for %s: %w", t.Path, err)
			}
			if info.Size != t.Length {
				return fmt.Errorf("%w: %s has %d bytes in the store, and %d are to be signed", ErrBadPending, t.Path, info.Size, t.Length)
			}
		}
	}
	return nil
}

// planSigned fills in the result of a dry run.
func (d *draft) planSigned(ctx context.Context) error {
	d.result.DryRun, d.result.Attempts = true, 1
	for _, role := range d.signable() {
		change := d.signed[role].change()
		if role == layout.RoleRoot {
			d.result.Roles = append(d.result.Roles, change)
			continue
		}
		var err error
		if change.Targets, err = d.changes(ctx, role); err != nil {
			return err
		}
		d.result.Roles = append(d.result.Roles, change)
	}
	return nil
}

func (part *pendingPart) change() RoleChange {
	c := RoleChange{Role: part.desc.Role, From: part.desc.From, To: part.desc.To, Expires: *part.head().expires}
	for _, s := range part.signatures {
		c.Signers = append(c.Signers, s.KeyID)
	}
	return c
}

// writeSigned writes a role that others have signed. If it is there already,
// from a publish of this change that was cut off or runs at the same time, that
// will do: three clients look at it before the commit.
func (d *draft) writeSigned(ctx context.Context, part *pendingPart, written map[string][]byte) (int64, error) {
	change := part.change()
	var err error
	if part.root == nil {
		if change.Targets, err = d.changes(ctx, change.Role); err != nil {
			return 0, err
		}
	}
	data, err := part.signed()
	if err != nil {
		return 0, err
	}
	name := layout.MetadataObject(change.Role, change.To)
	_, err = d.repo.store.Create(ctx, name, bytes.NewReader(data), int64(len(data)), options(name))
	if errors.Is(err, store.ErrConflict) {
		data, err = d.sameSigned(ctx, name, part)
	}
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", name, err)
	}
	written[layout.MetadataFile(change.Role, change.To)] = data
	d.result.Roles = append(d.result.Roles, change)
	return change.To, nil
}

// sameSigned reads what lies in the place of a part, if it is the same.
func (d *draft) sameSigned(ctx context.Context, name string, part *pendingPart) ([]byte, error) {
	data, err := readObject(ctx, d.repo.store, name)
	if err != nil {
		return nil, err
	}
	if !part.is(data) {
		return nil, fmt.Errorf("%w: the version is taken by another change", ErrStale)
	}
	return data, nil
}

// AbandonPending gives a waiting change up: nobody signs or publishes it any
// more. One that is closed already is ErrClosed or ErrExists.
func (r *Repository) AbandonPending(ctx context.Context, id, reason string) (*Pending, error) {
	base, err := r.loadAny(ctx)
	if err != nil {
		return nil, err
	}
	p, err := r.pendingOn(ctx, base, id)
	if err != nil && !errors.Is(err, ErrBadPending) {
		return nil, err
	}
	if p == nil { // bad ones can be put away too
		p = &Pending{ID: id, State: PendingBad, Roles: []PendingRole{}}
	} else if err := p.Open(); err != nil && !errors.Is(err, ErrStale) {
		return nil, err
	}
	closed := Closing{Outcome: outcomeAbandoned, Reason: clean(reason)}
	if err := r.close(ctx, id, closed); err != nil {
		return nil, err
	}
	if p.State == PendingBad {
		return p, nil
	}
	return r.pendingOn(ctx, base, id)
}

// close writes down how a change ended. If it has ended already, the first word
// stands, and that is ErrClosed.
func (r *Repository) close(ctx context.Context, id string, c Closing) error {
	c.Format, c.When, c.By = pendingFormat, r.moment(), clean(r.by)
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	name := layout.PendingClosed(id)
	_, err = r.store.Create(ctx, name, bytes.NewReader(data), int64(len(data)), options(name))
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("change %s: %w", id, ErrClosed)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
