package tuf_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// walked returns the roles by "delegator>name".
func walked(t *testing.T, c *tuf.Client) map[string]*tuf.Role {
	t.Helper()
	out := map[string]*tuf.Role{}
	if err := c.Walk(t.Context(), func(r *tuf.Role) error {
		out[r.Delegator+">"+r.Name] = r
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// A publication that changes one bin costs the parsing of that bin, however
// many there are, also if its delegator is signed anew.
func TestUnchangedRolesAreTakenOver(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	bins := repo.DelegateBins("A", 3, "bin")
	repo.PublishAll()
	c := inMemory(t, repo)
	refresh(t, c)
	was := walked(t, c)
	changed := func(want ...string) {
		t.Helper()
		refresh(t, c)
		is := walked(t, c)
		var got []string
		for _, e := range slices.Sorted(maps.Keys(is)) {
			if is[e] != was[e] {
				got = append(got, e)
			}
			if string(is[e].Bytes) != string(repo.Latest(is[e].Name)) {
				t.Errorf("%s is not the latest", e)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("new roles %q, want %q", got, want)
		}
		was = is
	}
	repo.Publish("timestamp")
	changed()
	repo.Publish("snapshot", "timestamp")
	changed()
	repo.Publish(bins[3], "snapshot", "timestamp")
	changed("A>" + bins[3])
	repo.Publish("A", "targets", "snapshot", "timestamp")
	changed("root>targets", "targets>A")

	// Also over snapshots under which nobody asked.
	repo.Publish("snapshot", "timestamp")
	refresh(t, c)
	repo.Publish("snapshot", "timestamp")
	changed()
}

// Whatever a role was verified against may change while its bytes and version
// stay: then what was found out before is worth nothing.
func TestTakenOverRolesAreVerified(t *testing.T) {
	type world struct {
		repo *tuftest.Repo
		now  time.Time
	}
	delegation := func(w *world) *metadata.DelegatedRole {
		return &w.repo.Targets["A"].Signed.Delegations.Roles[0]
	}
	tests := map[string]struct {
		change func(*world)
		want   error // nil: it still counts
	}{
		"nothing": {func(*world) {}, nil},
		"other key": {func(w *world) {
			k := tuftest.NewKey(tuftest.Ed25519)
			w.repo.Targets["A"].Signed.Delegations.Keys[k.ID] = k.Public
			delegation(w).KeyIDs = []string{k.ID}
		}, tuf.ErrNotTrusted},
		"other key under the same id": {func(w *world) {
			w.repo.Targets["A"].Signed.Delegations.Keys[delegation(w).KeyIDs[0]] = tuftest.NewKey(tuftest.Ed25519).Public
		}, tuf.ErrNotTrusted},
		"other scheme under the same id": {func(w *world) {
			keys, id := w.repo.Targets["A"].Signed.Delegations.Keys, delegation(w).KeyIDs[0]
			other := *keys[id]
			other.Scheme = "rsassa-pss-sha256"
			keys[id] = &other
		}, tuf.ErrNotTrusted},
		"key gone": {func(w *world) {
			clear(w.repo.Targets["A"].Signed.Delegations.Keys)
		}, tuf.ErrNotTrusted},
		"no key":           {func(w *world) { delegation(w).KeyIDs = []string{} }, tuf.ErrNotTrusted},
		"higher threshold": {func(w *world) { delegation(w).Threshold = 2 }, tuf.ErrNotTrusted},
		"wrong hash listed": {func(w *world) {
			w.repo.Snapshot.Signed.Meta["C.json"].Hashes = metadata.Hashes{"sha256": tuftest.Hash("sha256", nil)}
		}, tuf.ErrNotTrusted},
		"wrong length listed": {func(w *world) { w.repo.Snapshot.Signed.Meta["C.json"].Length = 17 }, tuf.ErrTooLarge},
		"higher version listed": {func(w *world) {
			w.repo.Snapshot.Signed.Meta["C.json"].Version++
		}, tuf.ErrOffline},
		"not listed":            {func(w *world) { delete(w.repo.Snapshot.Signed.Meta, "C.json") }, tuf.ErrNotTrusted},
		"expired since":         {func(w *world) { w.now = w.now.AddDate(0, 0, 3) }, tuf.ErrExpired},
		"another delegator too": {func(w *world) { w.repo.Delegate("B", tuftest.Delegation{Role: "C"}) }, tuf.ErrNotTrusted},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := &world{repo: tuftest.New(), now: time.Now()}
			w.repo.Delegate("targets", tuftest.Delegation{Role: "A"})
			w.repo.Delegate("targets", tuftest.Delegation{Role: "B"})
			w.repo.Delegate("A", tuftest.Delegation{Role: "C"})
			w.repo.Targets["C"].Signed.Expires = w.now.UTC().Truncate(time.Second).AddDate(0, 0, 2)
			w.repo.PublishAll()
			c := open(t, tuf.Config{Root: w.repo.Published["root"][0], Fetcher: w.repo, Now: func() time.Time { return w.now }})
			refresh(t, c)
			walked(t, c)

			tt.change(w)
			w.repo.Publish("A", "B", "targets", "snapshot", "timestamp")
			err := c.Refresh(t.Context())
			if err == nil {
				err = c.Walk(t.Context(), func(*tuf.Role) error { return nil })
			}
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantErr(t, err, tt.want)
		})
	}
}

// What a delegation says beside keys is taken from where it stands now.
func TestTerminatingIsReadAnew(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	repo.PublishAll()
	c := inMemory(t, repo)
	for _, terminating := range []bool{false, true, false} {
		repo.Targets["targets"].Signed.Delegations.Roles[0].Terminating = terminating
		repo.Publish("targets", "snapshot", "timestamp")
		refresh(t, c)
		if got := walked(t, c)["targets>A"].Terminating; got != terminating {
			t.Errorf("terminating %v, want %v", got, terminating)
		}
	}
}

// A delegation that is gone is gone, though the role was verified before.
func TestRemovedDelegation(t *testing.T) {
	repo := tuftest.New()
	for i := range 3 {
		repo.Delegate("targets", tuftest.Delegation{Role: fmt.Sprint("r", i)})
	}
	repo.PublishAll()
	c := inMemory(t, repo)
	refresh(t, c)
	walked(t, c)
	d := repo.Targets["targets"].Signed.Delegations
	d.Roles = slices.Delete(d.Roles, 1, 2)
	repo.Publish("targets", "snapshot", "timestamp")
	refresh(t, c)
	if got := walked(t, c); got["targets>r1"] != nil || len(got) != 3 {
		t.Errorf("walked %v", slices.Collect(maps.Keys(got)))
	}
	if c.Bytes("r1") != nil {
		t.Error("a role that nobody delegates to is still given out")
	}
}
