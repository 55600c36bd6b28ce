package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// Waiting says what becomes of a change for which a role needs more signatures
// than the keys at hand give.
type Waiting int

const (
	// WaitNever refuses it with ErrKeys.
	WaitNever Waiting = iota
	// WaitIfNeeded lets it wait in pending/ for the signatures of others, if
	// keys at hand sign for at least one of the roles that it edits. Who holds
	// none of them is refused: the wrong keys were named, more likely than not.
	WaitIfNeeded
	// WaitAlways lets it wait, however many keys are at hand.
	WaitAlways
)

// PendingState is where a waiting change stands.
type PendingState string

// States of a change.
const (
	PendingWaiting   PendingState = "waiting"   // for signatures
	PendingReady     PendingState = "ready"     // to be published: all signatures are there
	PendingStale     PendingState = "stale"     // it no longer fits what is published
	PendingPublished PendingState = "published" // done
	PendingAbandoned PendingState = "abandoned" // given up
	PendingRebased   PendingState = "rebased"   // another change took its place
	PendingBad       PendingState = "bad"       // what lies there is no change
)

// Pending is a change that waits for signatures, as it was found and verified
// at one moment. What it holds to be signed stays as it was shown.
type Pending struct {
	ID      string       `json:"id"`
	State   PendingState `json:"state"`
	Why     []string     `json:"why,omitempty"` // it is stale, bad or closed
	Title   string       `json:"title"`         // as whoever staged it says
	By      string       `json:"by,omitempty"`  // the same
	Created time.Time    `json:"created"`       // the same
	Rebased string       `json:"rebased_from,omitempty"`

	Roles  []PendingRole `json:"roles"`
	Notes  []string      `json:"notes,omitempty"` // signatures that do not count, and the like
	Closed *Closing      `json:"closed,omitempty"`

	// What the roles are compared with: the published state, and its age.
	Compared Compared `json:"compared_with"`

	desc  *descriptor
	base  *state // nil: no repository is there
	draft *draft
	parts map[string]*pendingPart
}

// Compared is the published state that a waiting change is compared with.
type Compared struct {
	Timestamp int64     `json:"timestamp"` // version
	Expires   time.Time `json:"expires"`   // of the timestamp: beyond it, it was not the newest any more
}

// PendingRole is a role that a waiting change edits.
type PendingRole struct {
	Role      string         `json:"role"`
	From      int64          `json:"from"`
	To        int64          `json:"to"`
	Expires   time.Time      `json:"expires"`
	SHA256    string         `json:"sha256"` // of what is signed
	Threshold int            `json:"threshold"`
	Signed    []string       `json:"signed"`   // key ids whose signatures count
	Missing   int            `json:"missing"`  // signatures
	Unsigned  []string       `json:"unsigned"` // key ids that may sign yet
	Words     []string       `json:"words"`    // what changes, read from what is signed
	Targets   []TargetChange `json:"targets,omitempty"`
}

// pendingPart is the metadata of one edited role, and its signatures.
type pendingPart struct {
	desc       descriptorRole
	md         *targetsMetadata // nil: it is root's
	root       *rootMetadata
	data       []byte // as it lies in the store
	payload    []byte // what is signed
	keys       map[string]*metadata.Key
	signatures []metadata.Signature // that count, in the order of the role's keys
}

// head is the part of the metadata that every role has.
func (part *pendingPart) head() head {
	if part.root != nil {
		s := &part.root.Signed
		return head{&s.Version, &s.Expires, &s.UnrecognizedFields}
	}
	s := &part.md.Signed
	return head{&s.Version, &s.Expires, &s.UnrecognizedFields}
}

// encode gives what lies in the store unsigned, and what keys sign.
func (part *pendingPart) encode() (err error) {
	if part.root != nil {
		part.data, part.payload, err = encodeUnsigned(part.root)
	} else {
		part.data, part.payload, err = encodeUnsigned(part.md)
	}
	return err
}

// parse reads what lies in the store unsigned.
func (part *pendingPart) parse(data []byte) (err error) {
	part.data = data
	if part.desc.Role == layout.RoleRoot {
		part.root, part.payload, err = parseUnsigned(data, checkRoot)
	} else {
		part.md, part.payload, err = parseUnsigned(data, checkTargets)
	}
	return err
}

// signed is the metadata with the signatures that count, to be published.
func (part *pendingPart) signed() ([]byte, error) {
	if part.root != nil {
		md := *part.root
		md.Signatures = slices.Clone(part.signatures)
		return md.ToBytes(false)
	}
	md := *part.md
	md.Signatures = slices.Clone(part.signatures)
	return md.ToBytes(false)
}

// is reports whether published metadata holds what the part holds.
func (part *pendingPart) is(data []byte) bool {
	var payload []byte
	err := guard(func() (err error) {
		if part.root != nil {
			md := &rootMetadata{}
			if _, err = md.FromBytes(data); err == nil {
				_, payload, err = encodeUnsigned(md)
			}
			return err
		}
		md := &targetsMetadata{}
		if _, err = md.FromBytes(data); err == nil {
			_, payload, err = encodeUnsigned(md)
		}
		return err
	})
	return err == nil && bytes.Equal(payload, part.payload)
}

// Complete reports whether all roles have the signatures they need.
func (p *Pending) Complete() bool {
	return len(p.Roles) > 0 && !slices.ContainsFunc(p.Roles, func(r PendingRole) bool { return r.Missing > 0 })
}

// Open reports why the change can be neither signed nor published any more: it is
// ErrStale, ErrClosed, ErrExists (published) or ErrBadPending. It is nil if it can.
func (p *Pending) Open() error {
	why := strings.Join(p.Why, "; ")
	switch p.State {
	case PendingStale:
		return fmt.Errorf("change %s: %w: %s", p.ID, ErrStale, why)
	case PendingPublished:
		return fmt.Errorf("change %s: %w: it is published", p.ID, ErrExists)
	case PendingAbandoned, PendingRebased:
		return fmt.Errorf("change %s: %w: %s", p.ID, ErrClosed, why)
	case PendingBad:
		return fmt.Errorf("change %s: %w: %s", p.ID, ErrBadPending, why)
	}
	return nil
}

// waits decides whether the draft is to wait for signatures of others.
func (d *draft) waits(ctx context.Context) (bool, error) {
	if len(d.roles) == 0 || d.repo.waiting == WaitNever {
		return false, nil
	}
	if d.repo.waiting == WaitAlways {
		return true, nil
	}
	signing, lacking := false, false
	for _, role := range d.signable() {
		have, threshold, err := d.atHand(ctx, role)
		if err != nil {
			return false, err
		}
		signing = signing || have > 0
		lacking = lacking || have < threshold
	}
	return signing && lacking, nil
}

// signable lists the roles of the draft that can wait for signatures.
func (d *draft) signable() []string {
	if d.base == nil {
		return append([]string{layout.RoleRoot}, d.edited()...)
	}
	return d.edited()
}

// atHand counts the keys of a role that can be had, up to its threshold.
func (d *draft) atHand(ctx context.Context, role string) (have, threshold int, err error) {
	ids, threshold, err := d.authority(ctx, role)
	if err != nil {
		return 0, 0, err
	}
	for _, id := range ids {
		if have == threshold {
			break
		}
		if _, err := d.repo.keys(ctx, id); err == nil {
			have++
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrKeys) {
			return 0, 0, fmt.Errorf("key of role %s: %w", role, err)
		}
	}
	return have, threshold, nil
}

// stage puts the draft into pending/, signed with the keys at hand, instead of
// publishing it. Roles in kept are as they are: they were staged before, and
// bring their signatures along.
func (d *draft) stage(ctx context.Context, rebased string, kept map[string]*pendingPart) (*Pending, error) {
	if err := d.upload(ctx); err != nil {
		return nil, err
	}
	desc := &descriptor{Format: pendingFormat, Created: d.repo.moment(), Rebased: rebased, By: clean(d.repo.by)}
	if d.base != nil {
		desc.Base = descriptorBase{Root: d.root.Signed.Version, Targets: d.version(layout.RoleTargets)}
	} else {
		desc.Lifetimes = d.repo.onlineLifetimes()
	}
	parts := make(map[string]*pendingPart)
	for _, role := range d.signable() {
		part := kept[role]
		if part == nil {
			var err error
			if part, err = d.prepare(ctx, role); err != nil {
				return nil, err
			}
			if rebased == "" { // who rebases has not read what others staged
				part.signatures, _, err = signPayload(ctx, part.payload, role, part.desc.KeyIDs, part.desc.Threshold, d.repo.keys)
				if err != nil {
					return nil, err
				}
			}
		}
		parts[role] = part
		desc.Roles = append(desc.Roles, part.desc)
	}
	words, err := d.describe(ctx)
	if err != nil {
		return nil, err
	}
	desc.Title = title(d.signable(), words)
	if desc.ID, err = desc.makeID(); err != nil {
		return nil, err
	}
	if err := desc.check(desc.ID); err != nil {
		return nil, fmt.Errorf("stage: %w", err)
	}
	for _, r := range desc.Roles {
		part := parts[r.Role]
		if err := d.repo.createSame(ctx, layout.PendingRole(desc.ID, r.Role), part.data); err != nil {
			return nil, err
		}
		for _, s := range part.signatures {
			if err := d.repo.putSignature(ctx, desc.ID, part, s); err != nil {
				return nil, err
			}
		}
	}
	data, err := json.Marshal(desc)
	if err != nil {
		return nil, err
	}
	if err := d.repo.createSame(ctx, layout.PendingChange(desc.ID), data); err != nil {
		return nil, err
	}
	logger(ctx).Info().Str("change", desc.ID).Msg("staged")
	return d.repo.pendingOn(ctx, d.base, desc.ID)
}

// prepare gives a role its next version, as it is to be signed.
func (d *draft) prepare(ctx context.Context, role string) (*pendingPart, error) {
	part := &pendingPart{md: d.roles[role]}
	if role == layout.RoleRoot {
		part.root = d.root
	}
	h := part.head()
	change, ids, threshold, err := d.freshen(ctx, role, h)
	if err != nil {
		return nil, err
	}
	if *h.version, err = d.freeVersion(ctx, role, change.From); err != nil {
		return nil, err
	}
	if err := part.encode(); err != nil {
		return nil, fmt.Errorf("stage %s: %w", role, err)
	}
	if len(part.data) > maxMetadata {
		return nil, fmt.Errorf("stage %s: larger than %d bytes", role, maxMetadata)
	}
	sum := sha256.Sum256(part.payload)
	part.desc = descriptorRole{
		Role: role, From: change.From, To: *h.version, SHA256: hex.EncodeToString(sum[:]),
		Threshold: threshold, KeyIDs: ids,
	}
	if part.keys, err = d.declared(ctx, role); err != nil {
		return nil, err
	}
	return part, nil
}

// freeVersion is the next version number of a role that nobody has taken.
func (d *draft) freeVersion(ctx context.Context, role string, from int64) (int64, error) {
	for skip := range int64(maxSkips) {
		name := layout.MetadataObject(role, from+1+skip)
		_, err := d.repo.store.Stat(ctx, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return from + 1 + skip, nil
		case err != nil:
			return 0, fmt.Errorf("look for %s: %w", name, err)
		case role == layout.RoleRoot: // whose versions have no gaps
			return 0, fmt.Errorf("%s %w: %w", d.repo.store, ErrExists, errRootTaken)
		}
	}
	return 0, fmt.Errorf("stage %s: %d version numbers after %d are taken", role, maxSkips, from)
}

// declared are the keys that a role's delegator declares, by id.
func (d *draft) declared(ctx context.Context, role string) (map[string]*metadata.Key, error) {
	if d.root.Signed.Roles[role] != nil {
		return d.root.Signed.Keys, nil
	}
	targets, err := d.read(ctx, layout.RoleTargets)
	if err != nil {
		return nil, err
	}
	if targets.Delegations == nil {
		return nil, nil
	}
	return targets.Delegations.Keys, nil
}

// createSame creates an object. One that is there already with the same content
// is as good.
func (r *Repository) createSame(ctx context.Context, name string, data []byte) error {
	_, err := r.store.Create(ctx, name, bytes.NewReader(data), int64(len(data)), options(name))
	if errors.Is(err, store.ErrConflict) {
		have, rerr := readBounded(ctx, r.store, name, int64(len(data)))
		if rerr == nil && bytes.Equal(have, data) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// putSignature creates the object of one signature, which must verify.
func (r *Repository) putSignature(ctx context.Context, id string, part *pendingPart, s metadata.Signature) error {
	if err := verifySignature(part.keys[s.KeyID], part.payload, s.Signature); err != nil {
		return fmt.Errorf("%w: signature of key %.8s for role %s: %w", ErrNotTrusted, s.KeyID, part.desc.Role, err)
	}
	data, err := json.Marshal(signatureFile{
		Format: pendingFormat, KeyID: s.KeyID, Signature: hex.EncodeToString(s.Signature), Signed: r.moment(), By: clean(r.by),
	})
	if err != nil {
		return err
	}
	name := layout.PendingSignature(id, part.desc.Role, s.KeyID)
	_, err = r.store.Create(ctx, name, bytes.NewReader(data), int64(len(data)), options(name))
	if errors.Is(err, store.ErrConflict) {
		// The same key at the same moment: fine, if it is a signature.
		if _, rerr := r.readSignature(ctx, id, part, s.KeyID); rerr == nil {
			return nil
		}
		return fmt.Errorf("%w: something that is no signature lies in its place: %s", ErrBadPending, name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// title makes a line out of what changes.
func title(roles []string, words map[string][]string) string {
	var parts []string
	for _, role := range roles {
		w := words[role]
		if len(w) == 0 {
			parts = append(parts, role+": new signatures")
			continue
		}
		parts = append(parts, w[0])
	}
	line := strings.Join(parts, "; ")
	const most = 200
	if len(line) > most {
		line = strings.ToValidUTF8(line[:most], "") + "…"
	}
	return line
}
