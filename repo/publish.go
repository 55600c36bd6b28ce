package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

const (
	// maxAttempts bounds how often a publisher starts again on top of a winner.
	maxAttempts = 200
	// maxSkips bounds how many taken version numbers are skipped: those of lost
	// races and crashes since the last publish.
	maxSkips = 1000
)

// publish stages a change with edit, on top of what is published, and commits
// it, or lets it wait for signatures of others. edit may run several times, each
// time on a newer base, until no one else gets in between; it has no effect but
// on the draft.
func (r *Repository) publish(ctx context.Context, dryRun bool, edit func(context.Context, *draft) error) (*Change, error) {
	return r.onNewest(ctx, func(base *state) (d *draft, commit bool, err error) {
		d = r.draftOn(base)
		if err := edit(ctx, d); err != nil {
			return nil, false, err
		}
		if len(d.roles) == 0 && !d.stamp {
			return d, false, nil
		}
		d.result.Attempts = 1
		d.result.DryRun = dryRun
		if dryRun {
			return d, false, d.plan(ctx)
		}
		wait, err := d.waits(ctx)
		if err != nil || !wait {
			return d, true, err
		}
		d.result.Pending, err = d.stage(ctx, "", nil)
		return d, false, err
	})
}

// onNewest commits the draft that prepare makes, each time on a newer base,
// until no one else gets in between. What prepare does not want committed is
// returned as it is.
func (r *Repository) onNewest(ctx context.Context, prepare func(base *state) (d *draft, commit bool, err error)) (*Change, error) {
	for attempt := 1; ; attempt++ {
		base, err := r.load(ctx)
		if err != nil {
			return nil, err
		}
		d, commit, err := prepare(base)
		if err != nil {
			return nil, err
		}
		if !commit {
			return &d.result, nil
		}
		d.result.Attempts = attempt
		err = d.commit(ctx)
		if err == nil {
			logger(ctx).Info().Int64("timestamp", d.result.Timestamp).Int("attempts", attempt).Msg("published")
			return &d.result, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
		if attempt == maxAttempts {
			return nil, fmt.Errorf("%w: other publishers won %d times in a row; try again", ErrBusy, attempt)
		}
		logger(ctx).Info().Int("attempt", attempt).Msg("another publisher was faster; starting again on top of it")
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

// pause waits a random while that grows with the attempts.
func pause(ctx context.Context, attempt int) error {
	limit := min(50*time.Millisecond<<min(attempt, 5), 2*time.Second)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(rand.N(limit)):
		return nil
	}
}

// plan fills in the result without signing or writing anything.
func (d *draft) plan(ctx context.Context) error {
	for _, role := range d.edited() {
		md := d.roles[role]
		change, err := d.roleChange(ctx, role, md.Signed.UnrecognizedFields)
		if err != nil {
			return err
		}
		change.To = change.From + 1
		d.result.Roles = append(d.result.Roles, change)
	}
	return nil
}

// edited lists the edited roles: those that targets delegates to first.
func (d *draft) edited() []string {
	roles := slices.Sorted(maps.Keys(d.roles))
	if i := slices.Index(roles, layout.RoleTargets); i >= 0 {
		roles = append(slices.Delete(roles, i, i+1), layout.RoleTargets)
	}
	return roles
}

func (d *draft) roleChange(ctx context.Context, role string, fields map[string]any) (RoleChange, error) {
	c := RoleChange{Role: role, From: d.version(role), Expires: d.repo.moment().Add(roleLifetime(role, fields))}
	if d.roles[role] == nil {
		return c, nil
	}
	var err error
	c.Targets, err = d.changes(ctx, role)
	return c, err
}

// version is the published version of a role, 0 if there is none.
func (d *draft) version(role string) int64 {
	switch {
	case d.base == nil:
		return 0
	case role == layout.RoleTimestamp:
		return d.base.trusted.Timestamp.Signed.Version
	case role == layout.RoleSnapshot:
		return d.base.trusted.Snapshot.Signed.Version
	}
	if m := d.base.trusted.Snapshot.Signed.Meta[role+".json"]; m != nil {
		return m.Version
	}
	return 0
}

// commit writes the draft: documents, roles, snapshot, and, once three clients
// have walked it, the timestamp. It returns store.ErrConflict if the base is no
// longer what is published.
func (d *draft) commit(ctx context.Context) error {
	if err := d.upload(ctx); err != nil {
		return err
	}
	snapshot := metadata.Snapshot()
	snapshot.Signed.Meta = make(map[string]*metadata.MetaFiles)
	snapshot.Signed.UnrecognizedFields = nil
	if d.base != nil {
		maps.Copy(snapshot.Signed.Meta, d.base.trusted.Snapshot.Signed.Meta)
		snapshot.Signed.UnrecognizedFields = maps.Clone(d.base.trusted.Snapshot.Signed.UnrecognizedFields)
	} else {
		snapshot.Signed.UnrecognizedFields = d.repo.lifetimes(layout.RoleSnapshot)
	}
	written := make(map[string][]byte) // metadata file → content, for the walk
	for _, role := range d.edited() {
		version, err := d.writeEdited(ctx, role, written)
		if err != nil {
			return err
		}
		snapshot.Signed.Meta[role+".json"] = metadata.MetaFile(version)
	}
	h := head{&snapshot.Signed.Version, &snapshot.Signed.Expires, &snapshot.Signed.UnrecognizedFields}
	version, err := writeRole(ctx, d, layout.RoleSnapshot, snapshot, h, written)
	if err != nil {
		return err
	}
	stamp, err := d.signTimestamp(ctx, version)
	if err != nil {
		return err
	}
	if err := d.walk(ctx, stamp, written); err != nil {
		return err
	}
	etag := ""
	if d.base != nil {
		etag = d.base.etag
	}
	if _, err := d.repo.store.Replace(ctx, layout.TimestampObject, stamp, etag, options(layout.TimestampObject)); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// writeEdited writes an edited role: signed before, or else now.
func (d *draft) writeEdited(ctx context.Context, role string, written map[string][]byte) (int64, error) {
	if part := d.signed[role]; part != nil {
		return d.writeSigned(ctx, part, written)
	}
	md := d.roles[role]
	return writeRole(ctx, d, role, md, head{&md.Signed.Version, &md.Signed.Expires, &md.Signed.UnrecognizedFields}, written)
}

// head is the part of signed metadata that every role has.
type head struct {
	version *int64
	expires *time.Time
	fields  *map[string]any
}

// freshen gives a role about to be signed a new life, and says what changes and
// whose signatures it takes.
func (d *draft) freshen(ctx context.Context, role string, h head) (change RoleChange, keyIDs []string, threshold int, err error) {
	if keyIDs, threshold, err = d.authority(ctx, role); err != nil {
		return change, nil, 0, err
	}
	if change, err = d.roleChange(ctx, role, *h.fields); err != nil {
		return change, nil, 0, err
	}
	*h.expires = change.Expires
	*h.fields = signedAt(*h.fields, d.repo.moment())
	return change, keyIDs, threshold, nil
}

// writeRole signs and creates the next free version of a role, and returns it.
func writeRole[T metadata.Roles](ctx context.Context, d *draft, role string, md *metadata.Metadata[T], h head, written map[string][]byte) (int64, error) {
	change, ids, threshold, err := d.freshen(ctx, role, h)
	if err != nil {
		return 0, err
	}
	return d.writeVersion(ctx, &change, written, func(version int64) ([]byte, error) {
		*h.version = version
		change.Signers, err = sign(ctx, md, role, ids, threshold, d.repo.keys)
		if err != nil {
			return nil, err
		}
		return md.ToBytes(false)
	})
}

// writeVersion creates the next free version of a role. One that is taken
// belongs to a lost race or a crash, and is skipped: it may be someone's whose
// commit is still to come.
func (d *draft) writeVersion(ctx context.Context, change *RoleChange, written map[string][]byte, encode func(version int64) ([]byte, error)) (int64, error) {
	for skip := range int64(maxSkips) {
		change.To = change.From + 1 + skip
		name := layout.MetadataObject(change.Role, change.To)
		if skip > 0 { // signing again is dearer than asking
			if _, err := d.repo.store.Stat(ctx, name); err == nil {
				continue
			}
		}
		data, err := encode(change.To)
		if err != nil {
			return 0, err
		}
		_, err = d.repo.store.Create(ctx, name, bytes.NewReader(data), int64(len(data)), options(name))
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("write %s: %w", name, err)
		}
		written[layout.MetadataFile(change.Role, change.To)] = data
		d.result.Roles = append(d.result.Roles, *change)
		return change.To, nil
	}
	return 0, fmt.Errorf("write %s: %d version numbers after %d are taken", change.Role, maxSkips, change.From)
}

func (d *draft) signTimestamp(ctx context.Context, snapshot int64) ([]byte, error) {
	md := metadata.Timestamp()
	md.Signed.UnrecognizedFields = d.repo.lifetimes(layout.RoleTimestamp)
	if d.base != nil {
		md.Signed.UnrecognizedFields = maps.Clone(d.base.trusted.Timestamp.Signed.UnrecognizedFields)
	}
	h := head{&md.Signed.Version, &md.Signed.Expires, &md.Signed.UnrecognizedFields}
	change, ids, threshold, err := d.freshen(ctx, layout.RoleTimestamp, h)
	if err != nil {
		return nil, err
	}
	change.To = change.From + 1
	md.Signed.Version = change.To
	md.Signed.Meta = map[string]*metadata.MetaFiles{layout.RoleSnapshot + ".json": metadata.MetaFile(snapshot)}
	if change.Signers, err = sign(ctx, md, layout.RoleTimestamp, ids, threshold, d.repo.keys); err != nil {
		return nil, err
	}
	d.result.Roles = append(d.result.Roles, change)
	d.result.Timestamp = change.To
	return md.ToBytes(false)
}

// authority says which keys sign a role, and how many.
func (d *draft) authority(ctx context.Context, role string) (keyIDs []string, threshold int, err error) {
	if r := d.root.Signed.Roles[role]; r != nil {
		return r.KeyIDs, r.Threshold, nil
	}
	targets, err := d.read(ctx, layout.RoleTargets)
	if err != nil {
		return nil, 0, err
	}
	del := delegationOf(&metadata.Metadata[metadata.TargetsType]{Signed: *targets}, role)
	if del == nil {
		return nil, 0, fmt.Errorf("%w: targets does not delegate to %s", ErrNotTrusted, role)
	}
	return del.KeyIDs, del.Threshold, nil
}

func signedAt(fields map[string]any, at time.Time) map[string]any {
	if fields == nil {
		fields = make(map[string]any)
	}
	fields[tuf.SignedAtField] = at.Format(time.RFC3339)
	return fields
}
