package repo

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestDescriptorOfNewRepository: officers who sign a new repository sign nothing
// that would count in one that they have.
func TestDescriptorOfNewRepository(t *testing.T) {
	role := func(name string, from, to int64) descriptorRole {
		return descriptorRole{Role: name, From: from, To: to, SHA256: strings.Repeat("0", 64), Threshold: 1}
	}
	for name, tt := range map[string]struct {
		desc descriptor
		good bool
	}{
		"new":                     {descriptor{Roles: []descriptorRole{role("root", 0, 1), role("ring-a", 0, 1)}}, true},
		"with lifetimes":          {descriptor{Roles: []descriptorRole{role("root", 0, 1)}, Lifetimes: map[string]string{"timestamp": "72h0m0s"}}, true},
		"a later root":            {descriptor{Roles: []descriptorRole{role("root", 0, 2)}}, false},
		"root after another":      {descriptor{Roles: []descriptorRole{role("root", 1, 2)}}, false},
		"a later ring":            {descriptor{Roles: []descriptorRole{role("root", 0, 1), role("ring-a", 0, 7)}}, false},
		"a ring after another":    {descriptor{Roles: []descriptorRole{role("root", 0, 1), role("ring-a", 1, 2)}}, false},
		"on top of a repository":  {descriptor{Roles: []descriptorRole{role("root", 0, 1)}, Base: descriptorBase{Root: 1, Targets: 1}}, false},
		"lifetime of a ring":      {descriptor{Roles: []descriptorRole{role("root", 0, 1)}, Lifetimes: map[string]string{"ring-a": "1h"}}, false},
		"lifetime that is none":   {descriptor{Roles: []descriptorRole{role("root", 0, 1)}, Lifetimes: map[string]string{"timestamp": "-1h"}}, false},
		"lifetimes and no root":   {descriptor{Roles: []descriptorRole{role("ring-a", 0, 1)}, Lifetimes: map[string]string{"timestamp": "1h"}}, false},
		"snapshot":                {descriptor{Roles: []descriptorRole{role("snapshot", 0, 1)}}, false},
		"no role":                 {descriptor{}, false},
		"a role twice":            {descriptor{Roles: []descriptorRole{role("ring-a", 1, 2), role("ring-a", 1, 2)}}, false},
		"a role out of its place": {descriptor{Roles: []descriptorRole{role("../a", 1, 2)}}, false},
		"a role called change":    {descriptor{Roles: []descriptorRole{role("change", 1, 2)}}, false},
	} {
		desc := tt.desc
		desc.Format, desc.Created = pendingFormat, time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
		var err error
		if desc.ID, err = desc.makeID(); err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(desc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseDescriptor(data, desc.ID); (err == nil) != tt.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
