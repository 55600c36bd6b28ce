package tuf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Client keeps verified metadata of one repository. All methods are safe for
// concurrent use; one Refresh runs at a time, and others go on with the
// last verified view meanwhile.
type Client struct {
	fetcher Fetcher
	now     func() time.Time
	limits  Limits
	lenient bool // Config.PassExpired
	state   *state

	refreshing chan struct{} // holds one token while a Refresh runs

	mu        sync.RWMutex // guards the rest
	root      *trustedRoot
	view      *view // last consistent set; nil before the first
	floor     time.Time
	refreshed time.Time
}

type trustedRoot struct {
	md    *metadata.Metadata[metadata.RootType]
	bytes []byte
}

// Open loads and verifies the trusted root, takes the lock of Dir, and loads
// what else of Dir still verifies, so that a machine without a network can use
// it until it expires.
func Open(cfg Config) (*Client, error) {
	c := &Client{
		fetcher:    cfg.Fetcher,
		now:        cfg.Now,
		limits:     cfg.Limits.withDefaults(),
		lenient:    cfg.PassExpired,
		refreshing: make(chan struct{}, 1),
	}
	if c.now == nil {
		c.now = time.Now
	}
	st, err := openState(cfg.Dir, cfg.ReadOnly)
	if err != nil {
		return nil, err
	}
	c.state = st
	if err := c.openRoot(cfg.Root); err != nil {
		return nil, errors.Join(err, st.close())
	}
	c.floor = st.readClock()
	c.view = c.loadView()
	return c, nil
}

// Close gives the lock of Dir back.
func (c *Client) Close() error { return c.state.close() }

// openRoot chooses between the state's root and the configured one: see
// Config.Root.
func (c *Client) openRoot(configured []byte) error {
	saved, err := c.savedRoot()
	if configured == nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: there is no trusted root to begin with, neither configured nor in the state", ErrNotTrusted)
		}
		c.root = saved
		return err
	}
	conf, cerr := verifyFirstRoot(configured)
	if cerr != nil {
		return fmt.Errorf("configured root: %w", cerr)
	}
	if err == nil {
		is := conf.md.Signed.Version
		if saved.md.Signed.Version >= is {
			if known, ok := c.rootHistory(saved)[is]; ok && known != signedHash(conf) {
				return fmt.Errorf("%w: the state belongs to another repository: it has trusted a different root version %d than the configured one", ErrNotTrusted, is)
			}
			c.root = saved
			return nil
		}
		if err := c.forgetRotated(saved.md, conf.md); err != nil {
			return err
		}
	}
	// No saved root, a damaged one, or an older one.
	return c.saveRoot(conf)
}

// saveRoot makes a verified root the trusted one.
func (c *Client) saveRoot(r *trustedRoot) error {
	line := fmt.Sprintf("%d %s\n", r.md.Signed.Version, signedHash(r))
	history, _ := c.state.read(historyName, maxHistory-int64(len(line)))
	if err := c.state.write(historyName, append(history, line...)); err != nil {
		return err
	}
	if err := c.state.write(rootFile, r.bytes); err != nil {
		return err
	}
	c.mu.Lock()
	c.root = r
	c.mu.Unlock()
	return nil
}

// rootHistory returns the hashes of the roots that this state has trusted, by
// version, as far as they are recorded. It only tells repositories apart;
// nothing is trusted for it.
func (c *Client) rootHistory(saved *trustedRoot) map[int64]string {
	out := map[int64]string{}
	history, _ := c.state.read(historyName, maxHistory)
	for line := range strings.Lines(string(history)) {
		var version int64
		var hash string
		if n, _ := fmt.Sscanf(line, "%d %64s", &version, &hash); n == 2 {
			out[version] = hash // a later line counts: see Config.Root
		}
	}
	out[saved.md.Signed.Version] = signedHash(saved)
	return out
}

// signedHash is the same for the same content, whoever signed it.
func signedHash(r *trustedRoot) string {
	data, err := r.md.Signed.MarshalJSON() // keys in order
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (c *Client) savedRoot() (*trustedRoot, error) {
	data, err := c.state.read(rootFile, c.limits.Root)
	if err != nil {
		return nil, err
	}
	r, err := verifyFirstRoot(data)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return r, nil
}

// verifyFirstRoot verifies a root that is trusted for where it comes from.
// Expiry does not matter yet: newer roots may follow.
func verifyFirstRoot(data []byte) (*trustedRoot, error) {
	md, err := parse[metadata.RootType](metadata.ROOT, data)
	if err != nil {
		return nil, err
	}
	if err := verifySignatures(metadata.ROOT, rootDelegation(md, metadata.ROOT), md); err != nil {
		return nil, err
	}
	return &trustedRoot{md, data}, nil
}

// Status tells what is loaded.
func (c *Client) Status() Status {
	c.mu.RLock()
	defer c.mu.RUnlock()
	st := Status{Roles: map[string]RoleStatus{}, TrustedTime: c.floor, Refreshed: c.refreshed}
	root := &c.root.md.Signed
	st.Roles[metadata.ROOT] = topStatus(c.root.md, metadata.ROOT, root.Version, root.Expires, root.UnrecognizedFields)
	if c.view == nil {
		return st
	}
	root2 := c.view.root.md
	ts, sn := &c.view.timestamp.Signed, &c.view.snapshot.Signed
	st.Roles[metadata.TIMESTAMP] = topStatus(root2, metadata.TIMESTAMP, ts.Version, ts.Expires, ts.UnrecognizedFields)
	st.Roles[metadata.SNAPSHOT] = topStatus(root2, metadata.SNAPSHOT, sn.Version, sn.Expires, sn.UnrecognizedFields)
	for _, r := range append(c.view.delegated.all(), c.view.targets) {
		st.Roles[r.Name] = RoleStatus{
			Version: r.Version, Expires: r.Expires, SignedAt: signedAt(r.Metadata.Signed.UnrecognizedFields),
			KeyIDs: slices.Clone(r.delegation.keyIDs), Threshold: r.delegation.threshold,
		}
	}
	return st
}

func topStatus(root *metadata.Metadata[metadata.RootType], role string, version int64, expires time.Time, fields map[string]any) RoleStatus {
	d := rootDelegation(root, role)
	return RoleStatus{version, expires, signedAt(fields), slices.Clone(d.keyIDs), d.threshold}
}

// Bytes returns the verified bytes of a role that is loaded, or nil: root (the
// newest trusted), timestamp, snapshot, targets, or a delegated role.
func (c *Client) Bytes(role string) []byte {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if role == metadata.ROOT {
		return slices.Clone(c.root.bytes)
	}
	if c.view == nil {
		return nil
	}
	switch role {
	case metadata.TIMESTAMP:
		return slices.Clone(c.view.timestampBytes)
	case metadata.SNAPSHOT:
		return slices.Clone(c.view.snapshotBytes)
	}
	if r := c.view.role(role); r != nil {
		return slices.Clone(r.Bytes)
	}
	return nil
}

// RootMetadata returns the newest trusted root. It is read only.
func (c *Client) RootMetadata() *metadata.Metadata[metadata.RootType] {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.root.md
}

// TimestampMetadata returns the verified timestamp, or nil. It is read only.
func (c *Client) TimestampMetadata() *metadata.Metadata[metadata.TimestampType] {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.view == nil {
		return nil
	}
	return c.view.timestamp
}

// SnapshotMetadata returns the verified snapshot, or nil. It is read only.
func (c *Client) SnapshotMetadata() *metadata.Metadata[metadata.SnapshotType] {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.view == nil {
		return nil
	}
	return c.view.snapshot
}

// view is one consistent set of verified metadata. All but the delegated roles
// is fixed; those are added as walks need them.
type view struct {
	root           *trustedRoot
	timestamp      *metadata.Metadata[metadata.TimestampType]
	timestampBytes []byte
	snapshot       *metadata.Metadata[metadata.SnapshotType]
	snapshotBytes  []byte
	targets        *Role

	delegated *roleSet
}

// role returns a loaded targets role by its name, or nil.
func (v *view) role(name string) *Role {
	if name == metadata.TARGETS {
		return v.targets
	}
	return v.delegated.named(name)
}

// currentView returns the last verified view, refreshing first if there is none.
func (c *Client) currentView(ctx context.Context) (*view, error) {
	for range 2 {
		c.mu.RLock()
		v := c.view
		c.mu.RUnlock()
		if v != nil {
			return v, nil
		}
		if err := c.Refresh(ctx); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: no verified metadata", ErrNotTrusted)
}
