package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"strconv"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/mirror/fill"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Views before the current one are still served, but for their timestamp, so
// that a client in the middle of its walk can finish: keepViews of them, and
// up to maxViews of those that were current within the last keepFor.
const (
	keepViews = 3
	maxViews  = 32
	keepFor   = time.Minute
)

// view is one consistent state of the repository, verified as a whole. It
// never changes once it is shown.
type view struct {
	root, timestamp, snapshot int64                // versions
	verified                  time.Time            // when
	begun                     time.Time            // when the first view of that root and snapshot was shown
	docs                      map[string]*doc      // by name in the URL: "3.product-x.json", the role not encoded
	objects                   map[string]*object   // by name in the store: "targets/…"
	roles                     map[string]*roleDocs // targets and what it delegates to, however deep
	tops                      map[string]time.Time // expiry of root, timestamp and snapshot
}

// object is a target that may be fetched and served.
type object struct {
	fill.Object
	etag   string
	deltas []fill.Object // of a patch, each after its block list
}

// roleDocs is one version of a targets role with what it admits, shared by all
// views that have it.
type roleDocs struct {
	name    string
	version int64
	expires time.Time
	doc     *doc
	objects map[string]*object
}

// urlName is a role's file name after the URL was decoded once, as any TUF
// client encodes it.
func urlName(role string, version int64) string {
	return strconv.FormatInt(version, 10) + "." + role + ".json"
}

// same reports whether v already shows what c holds.
func (v *view) same(c *tuf.Client) bool {
	if v == nil {
		return false
	}
	ts, root := v.docs[layout.TimestampName], v.docs[urlName(roleRoot, v.root)]
	return bytes.Equal(ts.body, c.Bytes(layout.RoleTimestamp)) && bytes.Equal(root.body, c.Bytes(roleRoot))
}

// buildView makes a view of what c has just verified, fetching what it lacks.
// What prev has of it is taken over.
func buildView(ctx context.Context, c *tuf.Client, roots *rootChain, prev *view) (*view, error) {
	root, ts, sn := c.RootMetadata().Signed, c.TimestampMetadata().Signed, c.SnapshotMetadata().Signed
	if !root.ConsistentSnapshot {
		return nil, errors.New("the repository has given up consistent snapshots")
	}
	v := &view{
		root: root.Version, timestamp: ts.Version, snapshot: sn.Version,
		docs: map[string]*doc{}, roles: map[string]*roleDocs{},
		tops: map[string]time.Time{roleRoot: root.Expires, layout.RoleTimestamp: ts.Expires, layout.RoleSnapshot: sn.Expires},
	}
	for n, data := range roots.files {
		v.add(prev, roleRoot, n, data)
	}
	v.add(nil, layout.RoleTimestamp, ts.Version, c.Bytes(layout.RoleTimestamp))
	snapshot := v.add(prev, layout.RoleSnapshot, sn.Version, c.Bytes(layout.RoleSnapshot))

	if prev != nil && prev.root == v.root && prev.docs[urlName(layout.RoleSnapshot, sn.Version)] == snapshot {
		v.roles, v.objects = prev.roles, prev.objects // only the timestamp is new
		for _, r := range v.roles {
			v.docs[urlName(r.name, r.version)] = r.doc
		}
		return v, nil
	}
	count := 0
	err := c.Walk(ctx, func(role *tuf.Role) error {
		r := prev.role(role)
		if r == nil {
			r = newRoleDocs(role)
		}
		v.roles[r.name] = r
		v.docs[urlName(r.name, r.version)] = r.doc
		count += len(r.objects)
		return nil
	})
	if err != nil {
		return nil, err
	}
	v.objects = make(map[string]*object, count)
	for _, r := range v.roles {
		maps.Copy(v.objects, r.objects)
	}
	return v, nil
}

// add puts a top-level file into the view, the one of prev if it is the same.
func (v *view) add(prev *view, role string, version int64, data []byte) *doc {
	name := urlName(role, version)
	if role == layout.RoleTimestamp {
		name = layout.TimestampName
	}
	var d *doc
	if prev != nil {
		d = prev.docs[name]
	}
	if d == nil || !bytes.Equal(d.body, data) {
		d = newDoc(role, version, data)
	}
	v.docs[name] = d
	return d
}

// role returns what v has made of that very role, or nil.
func (v *view) role(role *tuf.Role) *roleDocs {
	if v == nil {
		return nil
	}
	r := v.roles[role.Name]
	if r == nil || r.version != role.Version || !bytes.Equal(r.doc.body, role.Bytes) {
		return nil
	}
	return r
}

// newRoleDocs collects what a role admits. It asks neither whether its
// delegator lets it sign that path nor whether another role comes first:
// clients do, and bytes that a role of the repository has signed harm no cache.
func newRoleDocs(role *tuf.Role) *roleDocs {
	targets := role.Metadata.Signed.Targets
	r := &roleDocs{
		name: role.Name, version: role.Version, expires: role.Expires,
		doc: newDoc(role.Name, role.Version, role.Bytes), objects: make(map[string]*object, len(targets)),
	}
	for path, t := range targets {
		if layout.CheckTargetPath(path) != nil || t.Length < 0 {
			continue // no URL leads there
		}
		addObjects(r.objects, path, t)
	}
	for path, t := range targets {
		linkBlocks(r.objects, path, t, targets[layout.BlocksPath(path)])
	}
	for path, t := range targets {
		if of, _, ok := layout.DeltaOf(path); ok {
			linkDelta(r.objects, path, t, of, targets[of])
		}
	}
	return r
}

// linkDelta tells a patch's object of a delta that machines may ask for in its
// place. Whether it is one is for them to say.
func linkDelta(objects map[string]*object, path string, t *metadata.TargetFiles, of string, patch *metadata.TargetFiles) {
	if patch == nil || t.Length >= patch.Length {
		return
	}
	d := objects[layout.TargetObject(path, hex.EncodeToString(t.Hashes["sha256"]))]
	o := objects[layout.TargetObject(of, hex.EncodeToString(patch.Hashes["sha256"]))]
	if d == nil || o == nil {
		return
	}
	if d.Blocks != nil {
		o.deltas = append(o.deltas, *d.Blocks)
	}
	o.deltas = append(o.deltas, d.Object)
}

// linkBlocks tells a large object of its block list, if the same role has
// signed one that can be it.
func linkBlocks(objects map[string]*object, path string, t, list *metadata.TargetFiles) {
	want := layout.BlockListLen(t.Length)
	if list == nil || want == 0 || list.Length != want || want > maxBlockList {
		return
	}
	o := objects[layout.TargetObject(path, hex.EncodeToString(t.Hashes["sha256"]))]
	l := objects[layout.TargetObject(layout.BlocksPath(path), hex.EncodeToString(list.Hashes["sha256"]))]
	if o != nil && l != nil {
		o.Blocks = &l.Object
	}
}

// maxBlockList is what a fill keeps of a block list in memory, in bytes: enough
// for an object of half a tebibyte. Larger ones are filled without.
const maxBlockList = 16 << 20

// addObjects names a target by each of its hashes, as clients may. Objects are
// kept and verified by SHA-256: a target without one is not served.
func addObjects(to map[string]*object, path string, t *metadata.TargetFiles) {
	sum := t.Hashes["sha256"]
	if len(sum) != sha256.Size {
		return
	}
	hexSum := hex.EncodeToString(sum)
	name := layout.TargetObject(path, hexSum)
	o := &object{Object: fill.Object{Name: name, Length: t.Length, SHA256: hexSum}, etag: `"` + hexSum + `"`}
	to[name] = o
	for alg, other := range t.Hashes {
		if alg != "sha256" {
			to[layout.TargetObject(path, hex.EncodeToString(other))] = o
		}
	}
}

// shown is what is served: the current view, and those before it.
type shown struct {
	views []*view // newest first; at least one
}

// current is nil if nothing is shown yet.
func (s *shown) current() *view {
	if s == nil {
		return nil
	}
	return s.views[0]
}

// with returns what is shown after v came. A view that differs from the one
// before in its timestamp only takes its place, so that the renewal of the
// timestamp does not push out what clients need.
func (s *shown) with(v *view) *shown {
	v.begun = v.verified
	next := &shown{views: []*view{v}}
	if s == nil {
		return next
	}
	old := s.views
	if old[0].root == v.root && old[0].snapshot == v.snapshot {
		v.begun = old[0].begun
		old = old[1:]
	}
	for i, o := range old {
		ended := next.views[i].begun
		if i >= keepViews && v.verified.Sub(ended) > keepFor || i >= maxViews {
			break
		}
		next.views = append(next.views, o)
	}
	return next
}

// doc finds a metadata file by its name in the URL. The timestamp is always
// the newest, since the newest view has one.
func (s *shown) doc(name string) *doc {
	for _, v := range s.views {
		if d := v.docs[name]; d != nil {
			return d
		}
	}
	return nil
}

// object finds a target by its object name.
func (s *shown) object(name string) *object {
	for _, v := range s.views {
		if o := v.objects[name]; o != nil {
			return o
		}
	}
	return nil
}
