package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// Whatever patches require and supersede: it comes to an end; each goes in after
// what it requires; none goes in that a patch which is there supersedes; nobody
// is kept out by a patch that does not get there; and whoever is refused for a
// circle cannot be reached.
func TestOrderProperties(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		products := []string{"a", "b", "c", "d"}
		var patches []*patch.Patch
		drawRef := func(join string) string {
			ref := rapid.SampledFrom(products).Draw(t, "product")
			if v := rapid.IntRange(0, 3).Draw(t, "version"); v > 0 || join == "@" {
				ref += fmt.Sprint(join, max(v, 1))
			}
			return ref
		}
		for _, p := range products {
			for v := 1; v <= 3; v++ {
				if rapid.Bool().Draw(t, "there") {
					patches = append(patches, &patch.Patch{
						Format: 1, ID: patch.MakeID(p, fmt.Sprint(v), "any"), Product: p, Version: fmt.Sprint(v), Platform: "any", Kind: patch.KindScript,
						Applies: patch.Applicability{
							Requires:   rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string { return drawRef(">=") }), 0, 2).Draw(t, "requires"),
							Supersedes: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string { return drawRef("@") }), 0, 1).Draw(t, "supersedes"),
						},
					})
				}
			}
		}
		patches = rapid.Permutation(patches).Draw(t, "plan")
		there := map[string]string{} // on the machine
		for _, p := range products {
			if rapid.IntRange(0, 3).Draw(t, "installed") == 0 {
				there[p] = "1"
			}
		}
		failing := map[string]bool{}
		for _, p := range patches {
			failing[p.ID] = rapid.IntRange(0, 5).Draw(t, "fails") == 0
		}

		done := 0
		tried := map[string]bool{}
		for {
			rep := evaluateModel(t, dir, patches, there)
			checkReport(t, rep, there)
			next := rep.next(&ApplyOptions{}, tried)
			if next == nil {
				return
			}
			if done++; done > len(patches) {
				t.Fatalf("it does not come to an end: %s is next", next.ID())
			}
			tried[next.Path] = true
			for _, r := range next.patch.Applies.Requires {
				if product, version, _ := patch.ParseRequirement(r); there[product] == "" || there[product] < version {
					t.Fatalf("%s goes in, and %s is not there", next.ID(), r)
				}
			}
			for i := range rep.Patches {
				if it := &rep.Patches[i]; it.State == StateInstalled && slices.Contains(it.patch.Applies.Supersedes, next.Product+"@"+next.Version) {
					t.Fatalf("%s goes in, and %s is there, which supersedes it", next.ID(), it.ID())
				}
			}
			if !failing[next.patch.ID] {
				there[next.Product] = next.Version
			}
		}
	})
}

// evaluateModel looks at the patches on a machine that is nothing but a map.
func evaluateModel(t *rapid.T, dir string, patches []*patch.Patch, there map[string]string) *Report {
	s := &session{Agent: &Agent{config: &Config{Ring: "users"}}, journal: &journal{dir: filepath.Join(dir, "none"), now: time.Now}}
	e := &evaluation{session: s, rep: &Report{Fresh: true}, plan: &rollout.Plan{}, found: map[string]string{}, failing: map[string]error{}}
	for _, p := range []string{"a", "b", "c", "d"} {
		e.found[p] = there[p]
	}
	for _, p := range patches {
		e.rep.Patches = append(e.rep.Patches, Item{
			Path: p.ID, Product: p.Product, Version: p.Version, SHA256: "00", Kind: p.Kind, patch: p,
		})
	}
	for i := range e.rep.Patches {
		e.applicable(t.Context(), &e.rep.Patches[i])
	}
	if err := e.arrange(); err != nil {
		t.Fatal(errors.Unwrap(err))
	}
	return e.rep
}

// checkReport checks what must hold of every report.
func checkReport(t *rapid.T, rep *Report, there map[string]string) {
	offered := map[string]bool{}
	for i := range rep.Patches {
		it := &rep.Patches[i]
		if it.State == "" || it.Why == "" || it.Trace[len(it.Trace)-1].Why != it.Why && it.State != StateOffered {
			t.Fatalf("%s: %s %q, and its trace ends with %+v", it.ID(), it.State, it.Why, it.Trace)
		}
		if it.State == StateOffered {
			if offered[it.Product] {
				t.Fatalf("two versions of %s are offered", it.Product)
			}
			offered[it.Product] = true
		}
	}
	order := rep.Order("")
	place := map[*Item]int{}
	for i, it := range order {
		place[it] = i + 1
	}
	for _, it := range order {
		for _, f := range it.first {
			if place[f] == 0 || place[f] >= place[it] {
				t.Fatalf("%s stands before %s, which goes in first", it.ID(), f.ID())
			}
		}
		for _, r := range it.patch.Applies.Requires {
			product, version, _ := patch.ParseRequirement(r)
			ok := there[product] != "" && there[product] >= version
			for _, f := range it.first {
				ok = ok || f.Product == product && f.Version >= version
			}
			if !ok {
				t.Fatalf("%s is to go in without %s", it.ID(), r)
			}
		}
		for _, other := range order {
			if other != it && slices.Contains(other.patch.Applies.Supersedes, it.Product+"@"+it.Version) && !slices.Contains(other.first, it) {
				t.Fatalf("%s is to go in, and so is %s, which supersedes it", it.ID(), other.ID())
			}
		}
	}
	// Nobody is kept out for the sake of a patch that is not there and does not
	// get there.
	for i := range rep.Patches {
		it := &rep.Patches[i]
		if it.State != StateSuperseded {
			continue
		}
		kept := false
		for j := range rep.Patches {
			by := &rep.Patches[j]
			kept = kept || by != it && (place[by] > 0 || by.State == StateInstalled)
		}
		if !kept {
			t.Fatalf("%s is superseded by nobody who gets there: %s", it.ID(), it.Why)
		}
	}
}
