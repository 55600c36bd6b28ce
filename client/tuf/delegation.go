package tuf

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// child is a role as its delegator sees it.
type child struct {
	name, delegator string
	delegation      delegation
	terminating     bool
}

// Target looks up a target path: the delegations are searched depth first in
// the order of their delegators, and the first role that lists it speaks for it
// (TUF 1.0.34 §5.6.7). A role that cannot be verified ends the search with an
// error. Without a verified view it refreshes first.
func (c *Client) Target(ctx context.Context, path string) (*Target, error) {
	v, err := c.usableView(ctx)
	if err != nil {
		return nil, err
	}
	stack := []child{{name: metadata.TARGETS}}
	visited := map[string]bool{}
	for len(stack) > 0 {
		next := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if visited[next.name] {
			continue
		}
		if len(visited) > c.limits.MaxDelegations {
			return nil, distrust(next.name, "more than %d delegated roles lie on the way to %q", c.limits.MaxDelegations, path)
		}
		visited[next.name] = true
		role := v.targets
		if next.name != metadata.TARGETS {
			if role, err = c.loadRole(ctx, v, next); err != nil {
				return nil, err
			}
		}
		if t := role.Metadata.Signed.Targets[path]; t != nil {
			return newTarget(path, role, t), nil
		}
		children := childrenFor(role, path)
		if n := len(children); n > 0 && children[n-1].terminating {
			stack = stack[:0]
		}
		slices.Reverse(children)
		stack = append(stack, children...)
	}
	return nil, fmt.Errorf("target %q: no role of the repository signs it: %w", path, fs.ErrNotExist)
}

func newTarget(path string, role *Role, t *metadata.TargetFiles) *Target {
	out := &Target{Path: path, Length: t.Length, Hashes: map[string]string{}, Role: role.Name, RoleVersion: role.Version}
	for alg, sum := range t.Hashes {
		out.Hashes[alg] = hex.EncodeToString(sum)
	}
	out.SHA256 = out.Hashes["sha256"]
	if t.Custom != nil {
		out.Custom = slices.Clone(*t.Custom)
	}
	return out
}

// Walk calls fn for every targets role that can be reached, delegators first,
// each role once. Every delegation is verified, also when several lead to one
// role. fn may use the Client.
func (c *Client) Walk(ctx context.Context, fn func(*Role) error) error {
	v, err := c.usableView(ctx)
	if err != nil {
		return err
	}
	if err := fn(v.targets); err != nil {
		return err
	}
	seen := map[string]bool{metadata.TARGETS: true}
	queue := []*Role{v.targets}
	for len(queue) > 0 {
		delegator := queue[0]
		queue = queue[1:]
		children, err := allChildren(v, delegator)
		if err != nil {
			return err
		}
		for _, next := range children {
			if next.name == metadata.TARGETS {
				continue // no walk for a target enters it again
			}
			role, err := c.loadRole(ctx, v, next)
			if err != nil {
				return err
			}
			if seen[next.name] {
				continue
			}
			seen[next.name] = true
			if err := fn(role); err != nil {
				return err
			}
			if role.Metadata.Signed.Delegations != nil {
				queue = append(queue, role)
			}
		}
	}
	return nil
}

// usableView returns the view to answer from, provided that none of its
// top-level roles has expired.
func (c *Client) usableView(ctx context.Context) (*view, error) {
	v, err := c.currentView(ctx)
	if err != nil {
		return nil, err
	}
	now, err := c.checkClock(signedAt(nil))
	if err != nil {
		return nil, err
	}
	if err := checkExpiry(metadata.ROOT, v.root.md.Signed.Expires, now); err != nil {
		return nil, err
	}
	if err := checkExpiry(metadata.TIMESTAMP, v.timestamp.Signed.Expires, now); err != nil {
		return nil, err
	}
	if err := checkExpiry(metadata.SNAPSHOT, v.snapshot.Signed.Expires, now); err != nil {
		return nil, err
	}
	return v, checkExpiry(metadata.TARGETS, v.targets.Expires, now)
}

// loadRole returns a targets role verified against the delegator in use: from
// what is loaded, from the state, or from the repository, which is asked
// whenever nothing closer verifies for this delegator.
func (c *Client) loadRole(ctx context.Context, v *view, from child) (*Role, error) {
	now, err := c.checkClock(signedAt(nil))
	if err != nil {
		return nil, err
	}
	e := edge{from.delegator, from.name}
	if role := v.delegated.get(e); role != nil {
		return role, c.checkRoleExpiry(role, now)
	}
	if from.name != metadata.TARGETS && isTopLevel(from.name) {
		return nil, distrust(from.delegator, "it delegates to %q, the name of a top-level role", from.name)
	}
	want := v.snapshot.Signed.Meta[from.name+".json"]
	if want == nil {
		return nil, distrust(metadata.SNAPSHOT, "it does not list %q, to which %s delegates", from.name, from.delegator)
	}
	if role := v.delegated.unchanged(from, want); role != nil && c.checkRoleExpiry(role, now) == nil {
		return c.addRole(v, e, role, false), nil
	}
	others, fetched := v.delegated.copies(from.name)
	if saved, err := c.state.read(stateFile(from.name), c.limits.Targets); err == nil {
		others = append(others, saved)
	}
	for _, data := range others {
		role, err := verifyRole(v, from, data)
		if err == nil && c.checkRoleExpiry(role, now) == nil {
			return c.addRole(v, e, role, false), nil
		}
		if err != nil && fetched {
			// The repository serves one file under this name, and it is not
			// for this delegator.
			return nil, err
		}
	}
	data, err := c.fetchListed(ctx, v, from.name, want, c.limits.Targets)
	if err != nil {
		return nil, err
	}
	role, err := verifyRole(v, from, data)
	if err != nil {
		return nil, err
	}
	if err := c.checkRoleExpiry(role, now); err != nil {
		return nil, err
	}
	if err := c.state.write(stateFile(from.name), data); err != nil {
		return nil, err
	}
	return c.addRole(v, e, role, true), nil
}

func (c *Client) checkRoleExpiry(role *Role, now time.Time) error {
	if c.lenient && role.Name != metadata.TARGETS {
		return nil
	}
	return checkExpiry(role.Name, role.Expires, now)
}

func (c *Client) addRole(v *view, e edge, role *Role, fetched bool) *Role {
	if e.delegator != metadata.ROOT {
		v.delegated.add(e, role, fetched)
	}
	return role
}

// verifyRole checks a targets role against its delegator and the snapshot
// (§5.6.2-5.6.4), not its expiry.
func verifyRole(v *view, from child, data []byte) (*Role, error) {
	want := v.snapshot.Signed.Meta[from.name+".json"]
	if want == nil {
		return nil, distrust(metadata.SNAPSHOT, "it does not list %q", from.name)
	}
	if err := verifyFile(from.name, want, data); err != nil {
		return nil, err
	}
	md, err := parse[metadata.TargetsType](from.name, data)
	if err != nil {
		return nil, err
	}
	if err := verifySignatures(from.name, from.delegation, md); err != nil {
		return nil, fmt.Errorf("as %s delegates it: %w", from.delegator, err)
	}
	if md.Signed.Version != want.Version {
		return nil, distrust(from.name, "version %d, but the snapshot lists version %d", md.Signed.Version, want.Version)
	}
	return &Role{
		Name: from.name, Delegator: from.delegator, Version: md.Signed.Version, Expires: md.Signed.Expires,
		Bytes: data, Metadata: md, Terminating: from.terminating,
		delegation: from.delegation, listed: want,
	}, nil
}

// isTopLevel also catches other spellings, which are the same file on some
// file systems.
func isTopLevel(role string) bool {
	return role == "" || slices.ContainsFunc(metadata.TOP_LEVEL_ROLE_NAMES[:], func(top string) bool {
		return strings.EqualFold(role, top)
	})
}

// childrenFor returns the roles to which r delegates a target path, in order,
// up to and including the first terminating one.
func childrenFor(r *Role, target string) []child {
	d := r.Metadata.Signed.Delegations
	if d == nil {
		return nil
	}
	if s := d.SuccinctRoles; s != nil {
		sum := sha256.Sum256([]byte(target))
		bin := binary.BigEndian.Uint32(sum[:4]) >> (32 - s.BitLength)
		return []child{succinctChild(r, uint64(bin))}
	}
	var out []child
	sum := sha256.Sum256([]byte(target))
	sumHex := hex.EncodeToString(sum[:])
	for _, role := range d.Roles {
		if !delegates(&role, target, sumHex) {
			continue
		}
		out = append(out, listedChild(r, role))
		if role.Terminating {
			break
		}
	}
	return out
}

// allChildren returns all roles to which r delegates anything. Bins are bounded
// by the snapshot, which has to list each.
func allChildren(v *view, r *Role) ([]child, error) {
	d := r.Metadata.Signed.Delegations
	if d == nil {
		return nil, nil
	}
	var out []child
	if s := d.SuccinctRoles; s != nil {
		bins := uint64(1) << s.BitLength
		if bins > uint64(len(v.snapshot.Signed.Meta)) {
			return nil, distrust(metadata.SNAPSHOT, "it lists %d roles, but %s delegates to %d bins", len(v.snapshot.Signed.Meta), r.Name, bins)
		}
		for bin := range bins {
			out = append(out, succinctChild(r, bin))
		}
		return out, nil
	}
	for _, role := range d.Roles {
		out = append(out, listedChild(r, role))
	}
	return out, nil
}

func listedChild(r *Role, role metadata.DelegatedRole) child {
	return child{
		name: role.Name, delegator: r.Name, terminating: role.Terminating,
		delegation: delegation{r.Metadata.Signed.Delegations.Keys, role.KeyIDs, role.Threshold},
	}
}

// succinctChild is a bin: <prefix>-<number in hex, as wide as the last one's>.
func succinctChild(r *Role, bin uint64) child {
	s := r.Metadata.Signed.Delegations.SuccinctRoles
	width := len(strconv.FormatUint(uint64(1)<<s.BitLength-1, 16))
	return child{
		name: fmt.Sprintf("%s-%0*x", s.NamePrefix, width, bin), delegator: r.Name, terminating: true,
		delegation: delegation{r.Metadata.Signed.Delegations.Keys, s.KeyIDs, s.Threshold},
	}
}

// delegates tells whether a delegation covers a target path: by a pattern
// whose * and ? do not match a slash, or by the first digits of the path's
// SHA-256 in hex (TUF 1.0.34 §4.5).
func delegates(role *metadata.DelegatedRole, target, sumHex string) bool {
	if len(role.Paths) == 0 {
		return slices.ContainsFunc(role.PathHashPrefixes, func(prefix string) bool {
			return strings.HasPrefix(sumHex, strings.ToLower(prefix))
		})
	}
	return slices.ContainsFunc(role.Paths, func(pattern string) bool { return matches(pattern, target) })
}

func matches(pattern, target string) bool {
	patterns, parts := strings.Split(pattern, "/"), strings.Split(target, "/")
	if len(patterns) != len(parts) {
		return false
	}
	for i, p := range patterns {
		// The shell's and python-tuf's negation is [!…], Go's is [^…].
		if ok, err := path.Match(strings.ReplaceAll(p, "[!", "[^"), parts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
