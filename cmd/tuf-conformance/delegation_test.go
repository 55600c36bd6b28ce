package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

// arrow is a delegation in a graph.
type arrow struct {
	from, to    string
	paths       []string // none: any path of one part
	terminating bool
}

func (w *world) graph(arrows []arrow) {
	for _, a := range arrows {
		w.repo.Delegate(a.from, tuftest.Delegation{Role: a.to, Paths: a.paths, Terminating: a.terminating})
	}
	w.repo.PublishAll()
}

// visited is what a search asked for after the top-level roles.
func (w *world) visited(want ...string) {
	w.Helper()
	var names []string
	for _, role := range want {
		names = append(names, "1."+role+".json")
	}
	got := slices.DeleteFunc(w.repo.Requests(), func(name string) bool {
		return slices.Contains([]string{"2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"}, name) ||
			filepath.Dir(name) != "."
	})
	if !slices.Equal(got, names) {
		w.Fatalf("visited %q, want %q\n%s", got, names, w.stderr)
	}
}

// The roles are searched depth first, in their delegators' order.
func TestOrderOfDelegations(t *testing.T) {
	py := []string{"*.py"}
	tests := []struct {
		name    string
		arrows  []arrow
		visited string
	}{
		{"one", []arrow{{from: "targets", to: "A"}}, "A"},
		{"two side by side", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}}, "AB"},
		{"two levels", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "B", to: "C"}}, "ABC"},
		{"depth first", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "A", to: "C"}, {from: "A", to: "D"}}, "ACDB"},
		{"three levels", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "A", to: "C"}, {from: "C", to: "D"}}, "ACDB"},
		{"terminating", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "A", to: "C", terminating: true}, {from: "A", to: "D"}}, "AC"},
		{"terminating with children", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "A", to: "C", terminating: true}, {from: "C", to: "D"}}, "ACD"},
		{"terminating for other paths", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "A", to: "C", terminating: true, paths: py}, {from: "A", to: "D"}}, "ADB"},
		{"branch without a match", []arrow{{from: "targets", to: "A", paths: py}, {from: "targets", to: "B"}, {from: "A", to: "C"}}, "B"},
		{"deep branch without a match", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "A", to: "C", paths: py}, {from: "C", to: "D"}}, "AB"},
		{"cycle", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "B", to: "C"}, {from: "C", to: "D"}, {from: "D", to: "B"}}, "ABCD"},
		{"back to targets", []arrow{{from: "targets", to: "A"}, {from: "A", to: "targets"}, {from: "A", to: "B"}}, "AB"},
		{"to itself", []arrow{{from: "targets", to: "A"}, {from: "A", to: "A"}, {from: "targets", to: "B"}}, "AB"},
		{"two lead to one", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "B", to: "C"}, {from: "A", to: "C"}}, "ACB"},
		{"two lead to one for different paths", []arrow{{from: "targets", to: "A"}, {from: "targets", to: "B"}, {from: "B", to: "C"}, {from: "A", to: "C", paths: py}}, "ABC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t)
			// "back to targets" adds a signer that the root does not trust, which is fine.
			w.graph(tt.arrows)
			w.download(1, "missingpath")
			var want []string
			for _, r := range tt.visited {
				want = append(want, string(r))
			}
			w.visited(want...)
		})
	}
}

func TestSearchInATree(t *testing.T) {
	tests := []struct {
		name, target, content string
		visited               []string
	}{
		{"top level", "targetfile", "targetfile content", nil},
		{"pattern", "README.md", "README by A", []string{"A"}},
		{"pattern over parts, x", "releases/x/x_v1", "x release by C", []string{"B", "C"}},
		{"pattern over parts, y", "releases/y/y_v1.zip", "y release by D", []string{"B", "D"}},
		{"not delegated all the way", "releases/z/z_v1.zip", "", []string{"B"}},
		{"star does not match a slash", "dir/README.md", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t)
			for _, a := range []arrow{
				{from: "targets", to: "A", paths: []string{"*.doc", "*.md"}},
				{from: "targets", to: "B", paths: []string{"releases/*/*"}},
				{from: "B", to: "C", paths: []string{"releases/x/*"}},
				{from: "B", to: "D", paths: []string{"releases/y/*.zip"}},
			} {
				w.repo.Delegate(a.from, tuftest.Delegation{Role: a.to, Paths: a.paths})
			}
			for path, by := range map[string][2]string{
				"targetfile": {"targets", "targetfile content"}, "README.md": {"A", "README by A"}, "dir/README.md": {"A", "not his"},
				"releases/x/x_v1": {"C", "x release by C"}, "releases/y/y_v1.zip": {"D", "y release by D"}, "releases/z/z_v1.zip": {"D", "z release by D"},
			} {
				w.repo.AddArtifact(by[0], path, []byte(by[1]))
			}
			w.repo.PublishAll()
			if tt.content == "" {
				w.download(1, tt.target)
				w.downloaded()
			} else {
				w.download(0, tt.target)
				w.downloaded(tt.content)
			}
			w.visited(tt.visited...)
		})
	}
}

// C is signed for A alone. Through A it is fine; what B delegates to C it must
// not vouch for, though the client has verified C a moment ago.
func TestRoleIsVerifiedForEachDelegator(t *testing.T) {
	setup := func(t *testing.T) *world {
		w := start(t)
		w.repo.Delegate("targets", tuftest.Delegation{Role: "A", Paths: []string{"a/*"}})
		w.repo.Delegate("targets", tuftest.Delegation{Role: "B", Paths: []string{"b/*"}})
		w.repo.Delegate("A", tuftest.Delegation{Role: "C", Paths: []string{"a/*"}})
		own := w.repo.Signers["C"]
		w.repo.Delegate("B", tuftest.Delegation{Role: "C", Paths: []string{"b/*"}})
		w.repo.Signers["C"] = own
		w.repo.AddArtifact("C", "a/file", []byte("for A"))
		w.repo.AddArtifact("C", "b/file", []byte("for B"))
		w.repo.PublishAll()
		return w
	}
	t.Run("in one run", func(t *testing.T) {
		w := setup(t)
		w.download(1, "a/file", "b/file")
		w.downloaded("for A")
	})
	t.Run("in the next run", func(t *testing.T) {
		w := setup(t)
		w.download(0, "a/file")
		w.download(1, "b/file")
		w.downloaded("for A")
	})
	t.Run("the other way round", func(t *testing.T) {
		w := setup(t)
		w.download(1, "b/file")
		w.download(0, "a/file")
		w.downloaded("for A")
	})
	t.Run("signed for both", func(t *testing.T) {
		w := setup(t)
		k := tuftest.NewKey(tuftest.Ed25519)
		from := w.repo.Targets["B"].Signed.Delegations
		from.Keys[k.ID], from.Roles[0].KeyIDs = k.Public, []string{k.ID}
		w.repo.Signers["C"] = append(w.repo.Signers["C"], k)
		w.repo.PublishAll()
		w.download(0, "a/file", "b/file")
		w.downloaded("for A", "for B")
	})
}

func TestDelegatedRoleNeedsItsSignatures(t *testing.T) {
	w := start(t)
	w.repo.Delegate("targets", tuftest.Delegation{Role: "A", Threshold: 2, Keys: keyring(3)})
	w.repo.AddArtifact("A", "file", []byte("content"))
	all := w.repo.Signers["A"]
	w.repo.Signers["A"] = all[:1]
	w.repo.PublishAll()
	w.download(1, "file")
	w.trusts("root 1", "timestamp 2", "snapshot 2", "targets 2")
	w.repo.Signers["A"] = all[1:]
	w.repo.PublishAll()
	w.download(0, "file")
	w.downloaded("content")
}

func TestHashBins(t *testing.T) {
	for _, bits := range []int{1, 4, 5, 8} {
		t.Run(fmt.Sprintf("succinct, 2^%d", bits), func(t *testing.T) {
			w := start(t)
			names := w.repo.DelegateBins("targets", bits, "bin")
			sum := tuftest.Hash("sha256", []byte("some/path"))
			bin := names[int(sum[0])>>(8-bits)]
			w.repo.AddArtifact(bin, "some/path", []byte("content"))
			w.repo.PublishAll()
			w.download(0, "some/path")
			w.visited(bin)
			w.downloaded("content")
		})
	}
	t.Run("by hex prefix", func(t *testing.T) {
		w := start(t)
		sum := fmt.Sprintf("%x", tuftest.Hash("sha256", []byte("some/path")))
		for _, digit := range "0123456789abcdef" {
			w.repo.Delegate("targets", tuftest.Delegation{Role: "bin-" + string(digit), Prefixes: []string{string(digit)}})
		}
		w.repo.AddArtifact("bin-"+sum[:1], "some/path", []byte("content"))
		w.repo.PublishAll()
		w.download(0, "some/path")
		w.visited("bin-" + sum[:1])
	})
}

func TestUnusualRoleNames(t *testing.T) {
	for role, encoded := range map[string]string{
		"?": "%3F", "#": "%23", "/delegatedrole": "%2Fdelegatedrole", "../delegatedrole": "..%2Fdelegatedrole",
		".": ".", "..": "..", "../a": "..%2Fa", "%25": "%2525", "a b": "a%20b", "größe": "gr%C3%B6%C3%9Fe",
		"1.root": "1.root", "back\\slash": "back%5Cslash", "a.json": "a.json",
	} {
		t.Run(role, func(t *testing.T) {
			w := start(t)
			w.graph([]arrow{{from: "targets", to: role}})
			w.download(1, "nonexistent target")
			w.visited(encoded)
			w.trusts("root 1", "timestamp 2", "snapshot 2", "targets 2", encoded+" 1")
			parent := readDir(t, filepath.Dir(w.metadata))
			for _, name := range parent {
				if filepath.Ext(name) == ".json" {
					t.Errorf("%s was written outside the metadata directory", name)
				}
			}
		})
	}
}

// A delegator must not get its role written over the trusted root.
func TestDelegationToATopLevelName(t *testing.T) {
	for _, role := range []string{"root", "timestamp", "snapshot", "Root", ""} {
		t.Run(role, func(t *testing.T) {
			w := start(t)
			w.repo.Delegate("targets", tuftest.Delegation{Role: "inner"})
			w.repo.Targets["targets"].Signed.Delegations.Roles[0].Name = role
			w.repo.Publish(topLevel...)
			w.download(1, "nonexistent target")
			w.trusts("root 1", "timestamp 2", "snapshot 2", "targets 2")
			w.refresh(0)
		})
	}
}

func TestUnusualTargetNames(t *testing.T) {
	names := []string{
		"a b", "a?b", "a#b", "100%", "%25", "%2e%2e%2f", "größe/ß", "a+b&c=d;e,f", "a:b@c", "tilde~(1)'!*",
		"back\\slash", "..", ".", ".hidden", "../../escape", "/rooted", "dir/../up", "a//b", "line\nbreak", "-flag",
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			w.repo.AddArtifact("targets", name, []byte("content"))
			w.repo.Publish(topLevel...)
			w.download(0, name)
			w.downloaded("content")
			w.download(0, name)
			w.downloaded("content")
			if entries := readDir(t, w.targets); len(entries) != 1 || strings.HasPrefix(entries[0], ".") {
				t.Errorf("target directory holds %q, want one file that is not hidden", entries)
			}
		})
	}
}

func TestTooManyDelegations(t *testing.T) {
	w := start(t)
	var arrows []arrow
	for i := range 40 {
		arrows = append(arrows, arrow{from: "targets", to: fmt.Sprintf("r%02d", i)})
	}
	w.graph(arrows)
	w.download(1, "missingpath")
	if n := len(w.repo.Requests()); n > 4+32 {
		t.Errorf("%d requests", n)
	}
}
