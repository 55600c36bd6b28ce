package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

// revision describes one version of a role: the keys that its delegator
// trusts, how many must sign, and which do.
type revision struct {
	keys      []int
	threshold int
	sigs      []int
}

func keyring(n int) []*tuftest.Key {
	out := make([]*tuftest.Key, n)
	for i := range out {
		out[i] = tuftest.NewKey(tuftest.Ed25519)
	}
	return out
}

func (w *world) apply(role string, ring []*tuftest.Key, v revision) {
	in := w.repo.Root.Signed.Roles[role]
	in.KeyIDs, in.Threshold = nil, v.threshold
	w.repo.Signers[role] = nil
	for _, i := range v.keys {
		w.repo.Trust(role, ring[i])
	}
	for _, i := range v.sigs {
		w.repo.Signers[role] = append(w.repo.Signers[role], ring[i])
	}
}

func TestRootRotation(t *testing.T) {
	five := []int{0, 1, 2, 3, 4}
	tests := []struct {
		name  string
		roots []revision
		fails bool // the last root is refused
	}{
		{"one key", []revision{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{2, 1}}, {[]int{2}, 1, []int{2}}}, false},
		{"one key among others' signatures", []revision{{[]int{1}, 1, []int{3, 1, 4}}, {[]int{2}, 1, []int{3, 2, 1, 4}}, {[]int{2}, 1, []int{3, 2, 4}}}, false},
		{"3 of 5, other signers", []revision{{five, 3, []int{0, 2, 4}}, {five, 3, []int{0, 4, 1}}, {five, 3, []int{0, 1, 3}}, {five, 3, []int{0, 1, 3}}}, false},
		{"3 of 5, one key replaced", []revision{{five, 3, []int{0, 2, 4}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 4, 1}}}, false},
		{"3 of 5, one key replaced in steps", []revision{{five, 3, []int{0, 2, 4}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 2, 4, 5}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 4, 5}}}, false},
		{"3 of 5, all keys replaced", []revision{{five, 3, []int{0, 2, 4}}, {[]int{5, 6, 7, 8, 9}, 3, []int{0, 2, 4, 5, 6, 7}}, {[]int{5, 6, 7, 8, 9}, 3, []int{5, 6, 7}}}, false},
		{"threshold up", []revision{{[]int{1, 2, 3}, 1, []int{1}}, {[]int{1, 2, 3}, 2, []int{1, 2}}}, false},
		{"threshold down", []revision{{[]int{1, 2, 3}, 2, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1}}}, false},
		{"a second key needed", []revision{{[]int{1}, 1, []int{1}}, {[]int{1, 2}, 2, []int{1, 2}}}, false},
		{"not by the old key", []revision{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{2, 3, 4}}}, true},
		{"not by the new key", []revision{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{1, 3, 4}}}, true},
		{"not by three new keys", []revision{{five, 3, []int{0, 2, 4}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 2, 4}}}, true},
		{"not by three old keys", []revision{{five, 3, []int{0, 2, 4}}, {[]int{0, 1, 3, 4, 5}, 3, []int{0, 4, 5}}}, true},
		{"threshold up, not reached", []revision{{[]int{1, 2, 3}, 1, []int{1}}, {[]int{1, 2, 3}, 2, []int{2}}}, true},
		{"threshold down, the old one not reached", []revision{{[]int{1, 2, 3}, 2, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1}}}, true},
	}
	ring := keyring(10)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.repo.Published["root"] = nil
			for i, v := range tt.roots {
				w.apply("root", ring, v)
				w.repo.SetVersion("root", int64(i)+1)
				w.repo.Republish("root")
			}
			w.init(0)
			want := len(tt.roots) - 1
			if tt.fails {
				want--
				w.refresh(1)
			} else {
				w.refresh(0)
			}
			kept, err := os.ReadFile(filepath.Join(w.metadata, "root.json"))
			if err != nil || string(kept) != string(w.repo.Published["root"][want]) {
				t.Errorf("the root kept is not version %d (%v)", want+1, err)
			}
		})
	}
}

func TestRotationOfOtherRoles(t *testing.T) {
	five := []int{0, 1, 2, 3, 4}
	tests := []struct {
		name string
		revision
		fails bool
	}{
		{"one key", revision{[]int{2}, 1, []int{2}}, false},
		{"among others' signatures", revision{[]int{1}, 1, []int{3, 1, 4}}, false},
		{"not by the new key", revision{[]int{2}, 1, []int{1, 3, 4}}, true},
		{"3 of 5, one signer is strange", revision{[]int{0, 1, 3, 4, 5}, 3, []int{0, 2, 4}}, true},
		{"3 of 5, one missing", revision{[]int{0, 1, 3, 4, 5}, 3, []int{0, 4}}, true},
		{"3 of 5: 0 2 4", revision{five, 3, []int{0, 2, 4}}, false},
		{"3 of 5: 0 4 1", revision{five, 3, []int{0, 4, 1}}, false},
		{"3 of 5: 0 1 3", revision{five, 3, []int{0, 1, 3}}, false},
		{"3 of 5: 1 2 3", revision{five, 3, []int{1, 2, 3}}, false},
		{"3 of 5: 2 3 4", revision{five, 3, []int{2, 3, 4}}, false},
	}
	ring := keyring(6)
	for _, tt := range tests {
		for _, role := range topLevel {
			t.Run(tt.name+" "+role, func(t *testing.T) {
				w := start(t)
				w.apply(role, ring, tt.revision)
				w.repo.Publish("root", "targets", "snapshot", "timestamp")
				if tt.fails {
					w.refresh(1)
					return
				}
				w.refresh(0)
				w.keeps(role)
			})
		}
	}
}

func TestKeyKinds(t *testing.T) {
	for _, kind := range []tuftest.Kind{
		tuftest.RSAPSS, tuftest.ECDSA256, tuftest.Ed25519,
		tuftest.ECDSA384, tuftest.OldECDSA, tuftest.OldECDSA38,
	} {
		t.Run(kind.Type+" "+kind.Scheme, func(t *testing.T) {
			w := start(t)
			k := tuftest.NewKey(kind)
			w.repo.AddKey("root", k)
			w.repo.Root.Signed.Roles["root"].Threshold++
			w.repo.Publish("root")
			w.refresh(0)
			// The next root has a signature of the right shape by that key, made for something else.
			other := k.Sign([]byte("something else"))
			good := k.Sign
			k.Sign = func([]byte) []byte { return other }
			w.repo.Publish("root")
			k.Sign = good
			w.refresh(1)
			w.trusts("root 2", "timestamp 1", "snapshot 1", "targets 1")
		})
	}
}

// A key of a kind that nobody knows yet takes nothing from the others.
func TestUnknownKindOfKey(t *testing.T) {
	for _, role := range []string{"root", "timestamp", "snapshot", "targets"} {
		t.Run(role, func(t *testing.T) {
			w := start(t)
			w.repo.AddKey(role, tuftest.NewKey(tuftest.Unknown))
			w.repo.Publish("root", "targets", "snapshot", "timestamp")
			w.refresh(0)
			w.repo.Root.Signed.Roles[role].Threshold++ // but it does not count
			w.repo.Publish("root", "targets", "snapshot", "timestamp")
			w.refresh(1)
		})
	}
}

func TestKeyThatIsListedButMissing(t *testing.T) {
	w := start(t)
	k := tuftest.NewKey(tuftest.Ed25519)
	w.repo.AddKey("snapshot", k)
	delete(w.repo.Root.Signed.Keys, k.ID)
	w.repo.Publish("root", "snapshot", "timestamp")
	w.refresh(0)
	w.trusts("root 2", "timestamp 2", "snapshot 2", "targets 1")
}

func TestThreshold(t *testing.T) {
	t.Run("not met", func(t *testing.T) {
		w := newWorld(t)
		w.repo.Root.Signed.Roles["snapshot"].Threshold = 3
		w.repo.AddKey("snapshot", tuftest.NewKey(tuftest.Ed25519))
		w.repo.AddKey("snapshot", tuftest.NewKey(tuftest.Ed25519))
		w.repo.Publish("root", "targets", "snapshot", "timestamp")
		w.init(0)
		w.refresh(0)
		w.repo.Signers["snapshot"] = w.repo.Signers["snapshot"][:2]
		w.repo.Publish(topLevel...)
		w.refresh(1)
		w.trusts("root 2", "timestamp 3", "snapshot 2", "targets 2")
	})
	t.Run("more than there are keys", func(t *testing.T) {
		w := start(t)
		for range 4 {
			w.repo.AddKey("snapshot", tuftest.NewKey(tuftest.Ed25519))
		}
		w.repo.Root.Signed.Roles["snapshot"].Threshold = 6
		w.repo.Publish("root", "snapshot", "timestamp")
		w.refresh(1)
		w.trusts("root 2", "timestamp 2")
	})
	t.Run("raised while the local file has fewer", func(t *testing.T) {
		w := start(t)
		w.refresh(0)
		w.repo.AddKey("snapshot", tuftest.NewKey(tuftest.Ed25519))
		w.repo.Root.Signed.Roles["snapshot"].Threshold = 2
		w.repo.Publish("root")
		w.refresh(1)
		w.trusts("root 2", "timestamp 1", "snapshot 1", "targets 1")
		w.repo.Publish("snapshot", "timestamp")
		w.refresh(0)
	})
	t.Run("zero", func(t *testing.T) {
		w := start(t)
		w.repo.Root.Signed.Roles["timestamp"].Threshold = 0
		w.repo.Signers["timestamp"] = nil
		w.repo.Publish("root", "timestamp")
		w.refresh(1)
	})
	t.Run("by one key many times", func(t *testing.T) {
		w := start(t)
		k := tuftest.NewKey(tuftest.ECDSA256)
		for range 9 {
			w.repo.Trust("snapshot", k)
		}
		w.repo.Signers["snapshot"] = append(w.repo.Signers["snapshot"], k)
		w.repo.Root.Signed.Roles["snapshot"].Threshold = 6
		w.repo.Publish("root", "snapshot", "timestamp")
		w.signatures("snapshot", func(sigs []any) []any {
			for range 8 {
				sigs = append(sigs, sigs[1])
			}
			return sigs
		})
		w.refresh(1)
		if strings.Contains(strings.Join(readDir(t, w.metadata), " "), "snapshot") {
			t.Error("snapshot was kept")
		}
	})
	t.Run("by one key under many names", func(t *testing.T) {
		w := start(t)
		k := tuftest.NewKey(tuftest.ECDSA256)
		for _, id := range []string{"aa", "bb", "cc"} {
			w.repo.AddKey("snapshot", k.WithID(id))
		}
		w.repo.Root.Signed.Roles["snapshot"].Threshold = 3
		w.repo.Publish("root", "snapshot", "timestamp")
		w.refresh(1)
		w.trusts("root 2", "timestamp 2")
	})
}

func readDir(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// The specification wants each key id once among the signatures.
func TestSignatureTwice(t *testing.T) {
	w := start(t)
	w.signatures("snapshot", func(sigs []any) []any { return append(sigs, sigs[0]) })
	w.refresh(1)
	w.trusts("root 1", "timestamp 1")
}

func TestBadSignatureBesideAGoodOne(t *testing.T) {
	w := start(t)
	old := w.repo.Signers["timestamp"][0]
	w.repo.AddKey("timestamp", tuftest.NewKey(tuftest.ECDSA256))
	w.repo.Publish("root")
	for _, bad := range []string{strings.Repeat("0a", 64), ""} {
		w.repo.Publish("timestamp")
		w.signatures("timestamp", func(sigs []any) []any {
			i := slices.IndexFunc(sigs, func(s any) bool { return s.(map[string]any)["keyid"] == old.ID })
			sigs[i].(map[string]any)["sig"] = bad
			return sigs
		})
		w.refresh(0)
	}
	w.trusts("root 2", "timestamp 3", "snapshot 1", "targets 1")
}
