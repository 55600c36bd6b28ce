package tuf

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// roleSet holds the delegated roles that have been verified under one snapshot.
type roleSet struct {
	mu     sync.Mutex // guards the rest
	byEdge map[edge]loaded
	byName map[string][]edge // in order of the delegators' names

	// before holds roles of earlier snapshots under the same root. One counts
	// again if verifying it anew would ask the very same questions: unchanged.
	before map[edge]*Role
}

// edge is who delegated to whom: a role is trusted only for that.
type edge struct{ delegator, role string }

type loaded struct {
	*Role
	fetched bool // from the repository, under this snapshot
}

func newRoleSet() *roleSet {
	return &roleSet{byEdge: map[edge]loaded{}, byName: map[string][]edge{}, before: map[edge]*Role{}}
}

// takeOver offers the roles of the view before to a new, empty set.
func (s *roleSet) takeOver(old *view) {
	o := old.delegated
	o.mu.Lock()
	defer o.mu.Unlock()
	for e, r := range o.before { // which nobody has asked for since
		if sameEntry(old.snapshot.Signed.Meta[e.role+".json"], r.listed) {
			s.before[e] = r
		}
	}
	for e, r := range o.byEdge {
		s.before[e] = r.Role
	}
	s.before[edge{metadata.ROOT, metadata.TARGETS}] = old.targets
}

func (s *roleSet) get(e edge) *Role {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byEdge[e].Role
}

func (s *roleSet) add(e edge, r *Role, fetched bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byEdge[e]; !ok {
		edges := s.byName[e.role]
		at, _ := slices.BinarySearchFunc(edges, e, func(a, b edge) int { return strings.Compare(a.delegator, b.delegator) })
		s.byName[e.role] = slices.Insert(edges, at, e)
	}
	s.byEdge[e] = loaded{r, fetched}
	delete(s.before, e)
}

// named returns a role as its first delegator by name reached it, or nil.
func (s *roleSet) named(role string) *Role {
	s.mu.Lock()
	defer s.mu.Unlock()
	if edges := s.byName[role]; len(edges) > 0 {
		return s.byEdge[edges[0]].Role
	}
	return nil
}

// all returns each role once, in order of their names.
func (s *roleSet) all() []*Role {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Role, 0, len(s.byName))
	for _, edges := range s.byName {
		out = append(out, s.byEdge[edges[0]].Role)
	}
	slices.SortFunc(out, func(a, b *Role) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// copies returns the bytes of a role as other delegators reached it, and
// whether any came from the repository under this snapshot.
func (s *roleSet) copies(role string) (data [][]byte, fetched bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.byName[role] {
		r := s.byEdge[e]
		data = append(data, r.Bytes)
		fetched = fetched || r.fetched
	}
	return data, fetched
}

// unchanged returns the role that an earlier snapshot had on this edge if the
// snapshot's entry for it and its delegator's delegation to it still say the
// same. What was verified then is all that there is to verify: the bytes
// against that entry, the signatures against those keys and that threshold.
func (s *roleSet) unchanged(from child, want *metadata.MetaFiles) *Role {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.before[edge{from.delegator, from.name}]
	if r == nil || !sameEntry(r.listed, want) || r.Terminating != from.terminating || !r.delegation.equal(from.delegation) {
		return nil
	}
	return r
}

func sameEntry(a, b *metadata.MetaFiles) bool {
	return a != nil && b != nil && a.Version == b.Version && a.Length == b.Length &&
		maps.EqualFunc(a.Hashes, b.Hashes, func(x, y metadata.HexBytes) bool { return bytes.Equal(x, y) })
}

// equal compares all that verifySignatures looks at.
func (d delegation) equal(o delegation) bool {
	return d.threshold == o.threshold && slices.Equal(d.keyIDs, o.keyIDs) &&
		!slices.ContainsFunc(d.keyIDs, func(id string) bool { return !sameKey(d.keys[id], o.keys[id]) })
}

func sameKey(a, b *metadata.Key) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a == b || a.Type == b.Type && a.Scheme == b.Scheme && a.Value.PublicKey == b.Value.PublicKey
}
