package tuf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

const (
	rootFile      = metadata.ROOT + ".json"
	timestampFile = metadata.TIMESTAMP + ".json"
	snapshotFile  = metadata.SNAPSHOT + ".json"
	targetsFile   = metadata.TARGETS + ".json"

	// clockSlack is how far a clock may stand behind the repository's.
	clockSlack = 5 * time.Minute
)

// Refresh brings the top-level metadata up to date (TUF 1.0.34 §5.3-5.6):
// newer roots, timestamp, snapshot, targets, each kept as soon as it is
// verified. If the timestamp is the one known already, it makes two requests.
//
// When it fails, the view of the last success stays in use, unless a newer
// root took away the keys that it rests on.
func (c *Client) Refresh(ctx context.Context) error {
	select {
	case c.refreshing <- struct{}{}:
		defer func() { <-c.refreshing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	before := c.RootMetadata()
	v, err := c.refresh(ctx)
	if err == nil {
		c.mu.Lock()
		c.view, c.refreshed = v, c.now()
		c.mu.Unlock()
		return nil
	}
	if after := c.RootMetadata(); after != before {
		v := c.loadView()
		c.mu.Lock()
		c.view = v
		c.mu.Unlock()
	}
	return err
}

func (c *Client) refresh(ctx context.Context) (*view, error) {
	if err := c.updateRoot(ctx); err != nil {
		if errors.Is(err, ErrOffline) { // as over TLS, by a clock that is wrong
			if _, wrong := c.checkClock(time.Time{}); wrong != nil {
				return nil, wrong
			}
		}
		return nil, err
	}
	v, old := c.newView()
	now, err := c.checkClock(time.Time{})
	if err != nil {
		return nil, err
	}
	if err := checkExpiry(metadata.ROOT, v.root.md.Signed.Expires, now); err != nil {
		return nil, err
	}
	if err := c.updateTimestamp(ctx, v, old); err != nil {
		return nil, err
	}
	if err := c.updateSnapshot(ctx, v, old); err != nil {
		return nil, err
	}
	if err := c.updateTargets(ctx, v, old); err != nil {
		return nil, err
	}
	return v, nil
}

// updateRoot follows the chain of roots (§5.3).
func (c *Client) updateRoot(ctx context.Context) error {
	for range c.limits.MaxRootRotations {
		c.mu.RLock()
		old := c.root
		c.mu.RUnlock()
		next := old.md.Signed.Version + 1
		data, err := c.fetch(ctx, layout.MetadataFile(metadata.ROOT, next), c.limits.Root)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("fetch root version %d: %w", next, err)
		}
		md, err := parse[metadata.RootType](metadata.ROOT, data)
		if err != nil {
			return err
		}
		// §5.3.4: by the old keys and by its own.
		if err := verifySignatures(metadata.ROOT, rootDelegation(old.md, metadata.ROOT), md); err != nil {
			return fmt.Errorf("root version %d by the keys of version %d: %w", next, next-1, err)
		}
		if err := verifySignatures(metadata.ROOT, rootDelegation(md, metadata.ROOT), md); err != nil {
			return fmt.Errorf("root version %d by its own keys: %w", next, err)
		}
		if md.Signed.Version != next {
			return distrust(metadata.ROOT, "version %d in the place of version %d", md.Signed.Version, next)
		}
		// First forget, then accept: a crash in between must not leave the
		// attacker's timestamp in force under the new root.
		if err := c.forgetRotated(old.md, md); err != nil {
			return err
		}
		if err := c.saveRoot(&trustedRoot{md, data}); err != nil {
			return err
		}
	}
	return nil
}

// forgetRotated is the recovery from a fast-forward attack (§5.3.11): once a
// key of the timestamp or the snapshot has been taken away, no version number
// or time that it may have signed binds the client any more.
func (c *Client) forgetRotated(old, new *metadata.Metadata[metadata.RootType]) error {
	if !rotated(old, new, metadata.TIMESTAMP) && !rotated(old, new, metadata.SNAPSHOT) {
		return nil
	}
	for _, name := range []string{timestampFile, snapshotFile, clockName} {
		if err := c.state.remove(name); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.floor = time.Time{}
	c.mu.Unlock()
	return nil
}

func rotated(old, new *metadata.Metadata[metadata.RootType], role string) bool {
	now := new.Signed.Roles[role].KeyIDs
	return slices.ContainsFunc(old.Signed.Roles[role].KeyIDs, func(id string) bool {
		return !slices.Contains(now, id)
	})
}

// updateTimestamp is §5.4.
func (c *Client) updateTimestamp(ctx context.Context, v, old *view) error {
	known, knownBytes := c.loadTimestamp(v.root, old)
	data, err := c.fetch(ctx, timestampFile, c.limits.Timestamp)
	if err != nil {
		return mustExist("fetch timestamp", err)
	}
	md, err := verifyTimestamp(v.root, data)
	if err != nil {
		return err
	}
	if known != nil {
		was, is := known.Signed.Version, md.Signed.Version
		if is < was {
			return distrust(metadata.TIMESTAMP, "version %d is older than version %d, which is trusted already", is, was)
		}
		if is == was {
			md, data = known, knownBytes // §5.4.3.1: the one we have counts
		} else if was, is := known.Signed.Meta[snapshotFile].Version, md.Signed.Meta[snapshotFile].Version; is < was {
			return distrust(metadata.TIMESTAMP, "it lists snapshot version %d, older than version %d, which is trusted already", is, was)
		}
	}
	now, err := c.checkClock(signedAt(md.Signed.UnrecognizedFields))
	if err != nil {
		return err
	}
	if err := checkExpiry(metadata.TIMESTAMP, md.Signed.Expires, now); err != nil {
		return err
	}
	v.timestamp, v.timestampBytes = md, data
	if md == known {
		return nil
	}
	return c.state.write(timestampFile, data)
}

// newView begins a view under the trusted root. old is the view before it if
// that was verified by the same root: what is still the same in it need not be
// verified again.
func (c *Client) newView() (v, old *view) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v = &view{root: c.root, delegated: newRoleSet()}
	if c.view != nil && c.view.root == c.root {
		old = c.view
	}
	return v, old
}

// loadTimestamp returns the state's timestamp; nil if it does not verify.
func (c *Client) loadTimestamp(root *trustedRoot, old *view) (*metadata.Metadata[metadata.TimestampType], []byte) {
	data, err := c.state.read(timestampFile, c.limits.Timestamp)
	if err != nil {
		return nil, nil
	}
	if old != nil && bytes.Equal(data, old.timestampBytes) {
		return old.timestamp, data
	}
	md, err := verifyTimestamp(root, data)
	if err != nil {
		return nil, nil
	}
	return md, data
}

func verifyTimestamp(root *trustedRoot, data []byte) (*metadata.Metadata[metadata.TimestampType], error) {
	md, err := parse[metadata.TimestampType](metadata.TIMESTAMP, data)
	if err != nil {
		return nil, err
	}
	if err := verifySignatures(metadata.TIMESTAMP, rootDelegation(root.md, metadata.TIMESTAMP), md); err != nil {
		return nil, err
	}
	return md, nil
}

// updateSnapshot is §5.5.
func (c *Client) updateSnapshot(ctx context.Context, v, old *view) error {
	want := v.timestamp.Signed.Meta[snapshotFile]
	known, knownBytes := c.loadSnapshot(v.root, old)
	if known != nil && known.Signed.Version == want.Version && verifyFile(metadata.SNAPSHOT, want, knownBytes) == nil {
		return c.acceptSnapshot(v, known, knownBytes, false)
	}
	data, err := c.fetchListed(ctx, v, metadata.SNAPSHOT, want, c.limits.Snapshot)
	if err != nil {
		return err
	}
	md, err := verifySnapshot(v.root, data)
	if err != nil {
		return err
	}
	if md.Signed.Version != want.Version {
		return distrust(metadata.SNAPSHOT, "version %d, but the timestamp lists version %d", md.Signed.Version, want.Version)
	}
	if known != nil {
		for name, was := range known.Signed.Meta {
			is := md.Signed.Meta[name]
			if is == nil {
				return distrust(metadata.SNAPSHOT, "it no longer lists %q", name)
			}
			if is.Version < was.Version {
				return distrust(metadata.SNAPSHOT, "it lists version %d of %q, older than version %d, which is trusted already", is.Version, name, was.Version)
			}
		}
	}
	return c.acceptSnapshot(v, md, data, true)
}

func (c *Client) acceptSnapshot(v *view, md *metadata.Metadata[metadata.SnapshotType], data []byte, isNew bool) error {
	now, err := c.checkClock(signedAt(md.Signed.UnrecognizedFields))
	if err != nil {
		return err
	}
	if err := checkExpiry(metadata.SNAPSHOT, md.Signed.Expires, now); err != nil {
		return err
	}
	v.snapshot, v.snapshotBytes = md, data
	if !isNew {
		return nil
	}
	return c.state.write(snapshotFile, data)
}

func (c *Client) loadSnapshot(root *trustedRoot, old *view) (*metadata.Metadata[metadata.SnapshotType], []byte) {
	data, err := c.state.read(snapshotFile, c.limits.Snapshot)
	if err != nil {
		return nil, nil
	}
	if old != nil && bytes.Equal(data, old.snapshotBytes) {
		return old.snapshot, data
	}
	md, err := verifySnapshot(root, data)
	if err != nil {
		return nil, nil
	}
	return md, data
}

func verifySnapshot(root *trustedRoot, data []byte) (*metadata.Metadata[metadata.SnapshotType], error) {
	md, err := parse[metadata.SnapshotType](metadata.SNAPSHOT, data)
	if err != nil {
		return nil, err
	}
	if err := verifySignatures(metadata.SNAPSHOT, rootDelegation(root.md, metadata.SNAPSHOT), md); err != nil {
		return nil, err
	}
	return md, nil
}

// updateTargets is §5.6 for the top-level role.
func (c *Client) updateTargets(ctx context.Context, v, old *view) error {
	from := child{name: metadata.TARGETS, delegator: metadata.ROOT, delegation: rootDelegation(v.root.md, metadata.TARGETS)}
	now, err := c.checkClock(time.Time{})
	if err != nil {
		return err
	}
	if old != nil && old.snapshot == v.snapshot {
		v.targets, v.delegated = old.targets, old.delegated
		return checkExpiry(metadata.TARGETS, v.targets.Expires, now)
	}
	if old != nil {
		v.delegated.takeOver(old)
	}
	r, err := c.loadRole(ctx, v, from)
	if err != nil {
		return err
	}
	v.targets = r
	_, err = c.checkClock(signedAt(r.Metadata.Signed.UnrecognizedFields))
	return err
}

// loadView loads what the state holds if it is whole and consistent, expired
// or not: expiry is checked when it is used. nil if it is not whole.
func (c *Client) loadView() *view {
	v, _ := c.newView()
	if v.timestamp, v.timestampBytes = c.loadTimestamp(v.root, nil); v.timestamp == nil {
		return nil
	}
	want := v.timestamp.Signed.Meta[snapshotFile]
	v.snapshot, v.snapshotBytes = c.loadSnapshot(v.root, nil)
	if v.snapshot == nil || v.snapshot.Signed.Version != want.Version || verifyFile(metadata.SNAPSHOT, want, v.snapshotBytes) != nil {
		return nil
	}
	data, err := c.state.read(targetsFile, c.limits.Targets)
	if err != nil {
		return nil
	}
	from := child{name: metadata.TARGETS, delegator: metadata.ROOT, delegation: rootDelegation(v.root.md, metadata.TARGETS)}
	if v.targets, err = verifyRole(v, from, data); err != nil {
		return nil
	}
	return v
}

// checkClock raises the floor of trusted time to seen, compares the clock with
// it, and returns the time against which expiry is checked.
func (c *Client) checkClock(seen time.Time) (time.Time, error) {
	now := c.now().UTC()
	c.mu.Lock()
	raised := seen.After(c.floor)
	if raised {
		c.floor = seen
	}
	floor := c.floor
	c.mu.Unlock()
	if raised {
		if err := c.state.writeClock(floor); err != nil {
			return now, err
		}
	}
	if now.Add(clockSlack).Before(floor) {
		return now, fmt.Errorf("%w: the clock of this machine says %s, but the repository was signed at %s: set the clock",
			ErrClock, now.Format(time.RFC3339), floor.Format(time.RFC3339))
	}
	if now.Before(floor) {
		return floor, nil
	}
	return now, nil
}

func checkExpiry(role string, expires, now time.Time) error {
	if now.Before(expires) {
		return nil
	}
	return fmt.Errorf("%w: %s expired at %s, and by this machine's clock it is %s: the repository was not renewed, or the clock is ahead", ErrExpired, role,
		expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}
