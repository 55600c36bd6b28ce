// Package tuftest simulates a TUF repository for tests: metadata that a test
// changes at will, also in ways that no honest publisher would, signs,
// publishes, and serves over HTTP or as a tuf.Fetcher, with a log of what was
// asked for.
package tuftest

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Repo is a simulated repository. Its fields may be changed between requests;
// clients see only what Publish has signed.
type Repo struct {
	Root      *metadata.Metadata[metadata.RootType]
	Timestamp *metadata.Metadata[metadata.TimestampType]
	Snapshot  *metadata.Metadata[metadata.SnapshotType]
	Targets   map[string]*metadata.Metadata[metadata.TargetsType] // "targets" and the delegated roles

	// Signers sign a role when it is published, whether its delegator trusts
	// them or not.
	Signers map[string][]*Key
	// Published holds what clients get: version n of a role at index n-1,
	// whatever the bytes say.
	Published map[string][][]byte
	Artifacts map[string][]byte // by target path

	HashMeta   bool // give hashes and lengths of files in snapshot and timestamp
	HashPrefix bool // serve artifacts as <hash>.<name> where snapshots are consistent: true at first

	mu       sync.Mutex
	requests []string // guarded by mu
}

// Expires is the expiry of everything in a new Repo: 30 days from now.
func Expires() time.Time { return time.Now().UTC().Truncate(time.Second).AddDate(0, 0, 30) }

// New returns a published repository: version 1 of the four top-level roles,
// one ed25519 key each, consistent snapshots.
func New() *Repo {
	r := &Repo{
		Root:       metadata.Root(Expires()),
		Timestamp:  metadata.Timestamp(Expires()),
		Snapshot:   metadata.Snapshot(Expires()),
		Targets:    map[string]*metadata.Metadata[metadata.TargetsType]{metadata.TARGETS: metadata.Targets(Expires())},
		Signers:    map[string][]*Key{},
		Published:  map[string][][]byte{},
		Artifacts:  map[string][]byte{},
		HashPrefix: true,
	}
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		r.AddKey(role, NewKey(Ed25519))
	}
	r.Publish(metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP, metadata.ROOT)
	return r
}

// AddKey lets a key sign a top-level role, and trusts it in the root.
func (r *Repo) AddKey(role string, k *Key) {
	r.Trust(role, k)
	r.Signers[role] = append(r.Signers[role], k)
}

// Trust adds a key to a top-level role in the root, twice if it is called twice.
func (r *Repo) Trust(role string, k *Key) {
	root := &r.Root.Signed
	root.Keys[k.ID] = k.Public
	root.Roles[role].KeyIDs = append(root.Roles[role].KeyIDs, k.ID)
}

// RotateKeys replaces all keys of a top-level role by as many new ones as its
// threshold asks for.
func (r *Repo) RotateKeys(role string) {
	in := r.Root.Signed.Roles[role]
	in.KeyIDs, r.Signers[role] = nil, nil
	for range in.Threshold {
		r.AddKey(role, NewKey(Ed25519))
	}
}

// Delegation is a delegation to add.
type Delegation struct {
	Role        string
	Keys        []*Key // trusted and signing; none: one new key
	Threshold   int    // 0: 1
	Terminating bool
	Paths       []string // none: "*"; ignored with HashPrefixes
	Prefixes    []string // hex prefixes of the SHA-256 of the path
}

// Delegate adds a delegation at the end of a delegator's list, and an empty
// role if there is none of that name.
func (r *Repo) Delegate(delegator string, d Delegation) {
	if len(d.Keys) == 0 {
		d.Keys = []*Key{NewKey(Ed25519)}
	}
	if len(d.Paths) == 0 && len(d.Prefixes) == 0 {
		d.Paths = []string{"*"}
	}
	from := &r.Targets[delegator].Signed
	if from.Delegations == nil {
		from.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{}}
	}
	role := metadata.DelegatedRole{
		Name: d.Role, Threshold: max(d.Threshold, 1), Terminating: d.Terminating,
		Paths: d.Paths, PathHashPrefixes: d.Prefixes, KeyIDs: []string{},
	}
	for _, k := range d.Keys {
		from.Delegations.Keys[k.ID] = k.Public
		role.KeyIDs = append(role.KeyIDs, k.ID)
		r.addSigner(d.Role, k)
	}
	from.Delegations.Roles = append(from.Delegations.Roles, role)
	r.addRole(d.Role)
}

// DelegateBins splits a delegator into 2^bits succinct bins named
// <prefix>-<hex>, all with one new key, and returns their names.
func (r *Repo) DelegateBins(delegator string, bits int, prefix string) []string {
	k := NewKey(Ed25519)
	s := &metadata.SuccinctRoles{KeyIDs: []string{k.ID}, Threshold: 1, BitLength: bits, NamePrefix: prefix}
	r.Targets[delegator].Signed.Delegations = &metadata.Delegations{
		Keys: map[string]*metadata.Key{k.ID: k.Public}, SuccinctRoles: s,
	}
	names := s.GetRoles()
	for _, name := range names {
		r.addRole(name)
		r.addSigner(name, k)
	}
	return names
}

func (r *Repo) addRole(role string) {
	if r.Targets[role] == nil {
		r.Targets[role] = metadata.Targets(Expires())
	}
}

func (r *Repo) addSigner(role string, k *Key) {
	if !slices.Contains(r.Signers[role], k) {
		r.Signers[role] = append(r.Signers[role], k)
	}
}

// AddArtifact stores a file and lists it in a role with the given hash
// algorithms (none: sha256).
func (r *Repo) AddArtifact(role, path string, data []byte, algorithms ...string) {
	if len(algorithms) == 0 {
		algorithms = []string{"sha256"}
	}
	hashes := metadata.Hashes{}
	for _, a := range algorithms {
		hashes[a] = Hash(a, data)
	}
	r.Artifacts[path] = data
	r.Targets[role].Signed.Targets[path] = &metadata.TargetFiles{Length: int64(len(data)), Hashes: hashes, Path: path}
}

// Hash is the named hash of data; an unknown name gives the SHA-256.
func Hash(algorithm string, data []byte) []byte {
	if algorithm == "sha512" {
		sum := sha512.Sum512(data)
		return sum[:]
	}
	sum := sha256.Sum256(data)
	return sum[:]
}

// Publish signs the roles in the given order and serves them: each with its
// version raised by one, unless it was never published. Publishing a targets
// role enters it in the snapshot, publishing the snapshot enters it in the
// timestamp.
func (r *Repo) Publish(roles ...string) {
	for _, role := range roles {
		version := r.version(role)
		if len(r.Published[role]) > 0 {
			*version++
		}
		r.Republish(role)
		m := &metadata.MetaFiles{Version: *version}
		if r.HashMeta {
			data := r.Published[role][len(r.Published[role])-1]
			m.Length, m.Hashes = int64(len(data)), metadata.Hashes{"sha256": Hash("sha256", data)}
		}
		switch role {
		case metadata.ROOT, metadata.TIMESTAMP:
		case metadata.SNAPSHOT:
			r.Timestamp.Signed.Meta["snapshot.json"] = m
		default:
			r.Snapshot.Signed.Meta[role+".json"] = m
		}
	}
}

// PublishAll publishes every targets role, the snapshot and the timestamp.
func (r *Repo) PublishAll() {
	for role := range r.Targets {
		r.Publish(role)
	}
	r.Publish(metadata.SNAPSHOT, metadata.TIMESTAMP)
}

// Republish signs a role as it stands and serves it as its next version,
// without touching the version that it says it is.
func (r *Repo) Republish(role string) {
	r.Published[role] = append(r.Published[role], r.Sign(role))
}

// SetVersion sets the version that a role says it is.
func (r *Repo) SetVersion(role string, version int64) { *r.version(role) = version }

// Sign returns a role's bytes as it stands, signed by its signers.
func (r *Repo) Sign(role string) []byte {
	switch role {
	case metadata.ROOT:
		return sign(r.Root, r.Signers[role])
	case metadata.TIMESTAMP:
		return sign(r.Timestamp, r.Signers[role])
	case metadata.SNAPSHOT:
		return sign(r.Snapshot, r.Signers[role])
	}
	return sign(r.Targets[role], r.Signers[role])
}

func sign[T metadata.Roles](md *metadata.Metadata[T], keys []*Key) []byte {
	payload, err := cjson.EncodeCanonical(md.Signed)
	if err != nil {
		panic(err)
	}
	md.Signatures = []metadata.Signature{}
	for _, k := range keys {
		md.Signatures = append(md.Signatures, metadata.Signature{KeyID: k.ID, Signature: k.Sign(payload)})
	}
	data, err := md.ToBytes(false)
	if err != nil {
		panic(err)
	}
	return data
}

func (r *Repo) version(role string) *int64 {
	switch role {
	case metadata.ROOT:
		return &r.Root.Signed.Version
	case metadata.TIMESTAMP:
		return &r.Timestamp.Signed.Version
	case metadata.SNAPSHOT:
		return &r.Snapshot.Signed.Version
	}
	md := r.Targets[role]
	if md == nil {
		panic(fmt.Sprintf("tuftest: no role %q", role))
	}
	return &md.Signed.Version
}

// Latest returns what was published last for a role.
func (r *Repo) Latest(role string) []byte {
	all := r.Published[role]
	return all[len(all)-1]
}

// SetLatest replaces what was published last for a role.
func (r *Repo) SetLatest(role string, data []byte) {
	all := r.Published[role]
	all[len(all)-1] = data
}

// Pad makes a target's metadata big: n targets of no content in a role.
func (r *Repo) Pad(role string, n int) {
	for i := range n {
		r.Targets[role].Signed.Targets["pad/"+strconv.Itoa(i)] = &metadata.TargetFiles{
			Length: math.MaxInt32, Hashes: metadata.Hashes{"sha256": Hash("sha256", nil)},
		}
	}
}
