package repo_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// complete has two officers sign a change, and publishes it.
func (c *council) complete(t testing.TB, id string) {
	t.Helper()
	for _, key := range c.officers {
		if p := c.get(t, id); !p.Complete() && slices.Contains(p.Roles[0].Unsigned, key.id) {
			c.sign(t, id, key)
		}
	}
	if _, err := c.online().PublishPending(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
}

func (c *council) rebase(t testing.TB, id string) *repo.Pending {
	t.Helper()
	p, err := c.as(c.officers...).RebasePending(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRebase makes two changes of one role; the one that comes too late is made
// anew on top of the other.
func TestRebase(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	c.add(t, "1.1", []byte("two"))
	late, early := c.start(t, "1.0", c.officers[0]), c.start(t, "1.1", c.officers[1])
	if _, err := c.as().RebasePending(t.Context(), late.ID); !errors.Is(err, repo.ErrExists) {
		t.Errorf("RebasePending of one that fits = %v, want ErrExists", err)
	}
	c.complete(t, early.ID)
	next := c.rebase(t, late.ID)
	if next.ID == late.ID || next.Rebased != late.ID || next.State != repo.PendingWaiting || len(next.Roles[0].Signed) != 0 {
		t.Errorf("RebasePending = %+v", next)
	}
	if w := strings.Join(next.Roles[0].Words, "\n"); !strings.Contains(w, "approves hello@1.0/any") || strings.Contains(w, "1.1/any") {
		t.Errorf("it says:\n%s", w)
	}
	if old := c.get(t, late.ID); old.State != repo.PendingRebased || !strings.Contains(old.Why[0], next.ID) {
		t.Errorf("the old one: %+v", old)
	}
	c.complete(t, next.ID)
	if !c.approved(t, "1.0") || !c.approved(t, "1.1") {
		t.Error("one of the two is not approved")
	}
	for _, id := range []string{late.ID, early.ID, next.ID} {
		if _, err := c.as().RebasePending(t.Context(), id); !errors.Is(err, repo.ErrExists) && !errors.Is(err, repo.ErrClosed) {
			t.Errorf("RebasePending of %s = %v", id, err)
		}
	}
	c.mustVerify(t)
}

// TestRebaseKeepsWhatFits has a change of two roles of which one goes stale: the
// signatures of the other stay.
func TestRebaseKeepsWhatFits(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	halts, _, err := c.repo.AddHalt(t.Context(), repo.HaltScope{Product: "hello"}, "it bites", "anna", false)
	if err != nil {
		t.Fatal(err)
	}
	change, err := c.as(c.officers[0], c.keys.role["ring-users"]).LiftHalts(t.Context(), []string{halts[0].ID}, []string{"servers", "users"}, false)
	if err != nil || change.Pending == nil {
		t.Fatalf("LiftHalts = %+v, %v", change, err)
	}
	if _, err := c.repo.StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: "1.0", Ring: "users"}, false); err != nil {
		t.Fatal(err)
	}
	next := c.rebase(t, change.Pending.ID)
	for _, r := range next.Roles {
		want := map[string][]string{"ring-servers": {c.officers[0].id}, "ring-users": {}}[r.Role]
		if !slices.Equal(r.Signed, want) {
			t.Errorf("role %s is signed by %v, want %v", r.Role, r.Signed, want)
		}
	}
	c.sign(t, next.ID, c.officers[2])
	c.sign(t, next.ID, c.keys.role["ring-users"])
	if _, err := c.online().PublishPending(t.Context(), next.ID, false); err != nil {
		t.Fatal(err)
	}
	status, err := c.repo.Halts(t.Context())
	if err != nil || !slices.Equal(status[0].Lifted, []string{"users", "servers"}) {
		t.Errorf("Halts = %+v, %v", status, err)
	}
	if list, err := c.repo.Patches(t.Context(), "hello"); err != nil || !slices.Contains(list[0].Rings, "users") {
		t.Errorf("the rollout to the users is lost: %+v, %v", list, err)
	}
	c.mustVerify(t)
}

// TestRebaseOntoNewRole goes stale because others made another product.
func TestRebaseOfTargets(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	add := func(r *repo.Repository, product string, key *testKey) *repo.Change {
		change, err := r.AddProduct(t.Context(), product, repo.RoleConfig{Keys: keysOf(key)}, false)
		if err != nil {
			t.Fatal(err)
		}
		return change
	}
	own, other := newTestKey(t), newTestKey(t)
	first := add(c.waiting(repo.WaitAlways, own), "tool", own).Pending
	same := add(c.waiting(repo.WaitAlways, own), "tool", other).Pending
	add(repo.Open(c.store, repo.Config{Keys: func(ctx context.Context, id string) (repo.Signer, error) {
		if id == other.id {
			return other, nil
		}
		return c.keys.find(ctx, id)
	}}), "app", other)
	next := c.rebase(t, first.ID)
	for _, r := range next.Roles {
		if want := map[string]int{"targets": 0, "product-tool": 1}[r.Role]; len(r.Signed) != want {
			t.Errorf("role %s has %d signatures, want %d", r.Role, len(r.Signed), want)
		}
	}
	c.sign(t, next.ID, c.keys.role["targets"])
	if _, err := c.online().PublishPending(t.Context(), next.ID, false); err != nil {
		t.Fatal(err)
	}
	c.mustVerify(t)
	infos, err := c.repo.RoleInfos(t.Context())
	if err != nil || !slices.ContainsFunc(infos, func(i repo.RoleInfo) bool { return i.Name == "product-tool" && i.KeyIDs[0] == own.id }) ||
		!slices.ContainsFunc(infos, func(i repo.RoleInfo) bool { return i.Name == "product-app" }) {
		t.Errorf("RoleInfos = %+v, %v", infos, err)
	}
	// The same product with other keys is a conflict that people have to solve.
	before := c.files(t)
	if _, err := c.as().RebasePending(t.Context(), same.ID); !errors.Is(err, repo.ErrStale) && !errors.Is(err, repo.ErrExists) {
		t.Errorf("RebasePending of the same product = %v", err)
	}
	if !maps.Equal(before, c.files(t)) {
		t.Error("a refusal changed the store")
	}
}

func TestRebaseConflicts(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	c.complete(t, c.start(t, "1.0", c.officers[0]).ID)
	pause := func(reason string, keys ...*testKey) (*repo.Pending, error) {
		change, err := c.as(keys...).Pause(t.Context(), "hello", "1.0", "servers", reason, false)
		if err != nil {
			return nil, err
		}
		return change.Pending, nil
	}
	one, err := pause("it bites", c.officers[0])
	if err != nil {
		t.Fatal(err)
	}
	two, err := pause("Friday", c.officers[1])
	if err != nil {
		t.Fatal(err)
	}
	c.complete(t, two.ID)
	if _, err := c.as().RebasePending(t.Context(), one.ID); !errors.Is(err, repo.ErrStale) || !strings.Contains(err.Error(), "others changed rings/servers/plan.json entries patches/hello/1.0/any/hello.bin too") {
		t.Errorf("RebasePending of what both changed = %v", err)
	}
	if _, err := c.as().AbandonPending(t.Context(), one.ID, ""); err != nil {
		t.Error(err)
	}
}

// TestChangeExpires is stale because nobody signed it for a year.
func TestChangeExpires(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	p := c.start(t, "1.0", c.officers[0])
	later := repo.Open(c.store, repo.Config{Keys: only(c.officers...), Now: func() time.Time { return time.Now().Add(366 * 24 * time.Hour) }})
	got, err := later.Pending(t.Context(), p.ID)
	if err != nil || got.State != repo.PendingStale || !strings.Contains(got.Why[0], "expired") {
		t.Errorf("Pending = %+v, %v", got, err)
	}
	next, err := later.RebasePending(t.Context(), p.ID)
	if err != nil || next.State != repo.PendingWaiting || !strings.Contains(next.Roles[0].Words[0], "approves hello@1.0/any") {
		t.Errorf("RebasePending = %+v, %v", next, err)
	}
}

// TestVersionTaken is stale because of what a crashed publisher left behind.
func TestVersionTaken(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	p := c.start(t, "1.0", c.officers[0])
	name := layout.MetadataObject("ring-servers", p.Roles[0].To)
	if _, err := c.store.Create(t.Context(), name, strings.NewReader("{}"), 2, storeOptions); err != nil {
		t.Fatal(err)
	}
	if got := c.get(t, p.ID); got.State != repo.PendingStale || !strings.Contains(got.Why[0], "is taken by another") {
		t.Errorf("Pending = %+v", got)
	}
	next := c.rebase(t, p.ID)
	if next.Roles[0].To != p.Roles[0].To+1 {
		t.Errorf("the next version is %d", next.Roles[0].To)
	}
	c.complete(t, next.ID)
	c.mustVerify(t)
}

// TestTwoRebasesAtOnce leaves one change to be signed, whoever wins.
func TestTwoRebasesAtOnce(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	c.add(t, "1.1", []byte("two"))
	late, early := c.start(t, "1.0", c.officers[0]), c.start(t, "1.1", c.officers[1])
	c.complete(t, early.ID)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := c.as().RebasePending(context.Background(), late.ID); err != nil && !errors.Is(err, repo.ErrClosed) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := c.as().Pendings(t.Context(), false)
	if err != nil || len(list) != 1 || list[0].Rebased != late.ID {
		t.Errorf("Pendings = %+v, %v", list, err)
	}
}

// TestRotatedKeys takes an officer's key away while a change waits that is
// signed with it.
func TestRotatedKeys(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	anna, ben, carl, dora := c.officers[0], c.officers[1], c.officers[2], c.keys.add(t, "dora")
	p := c.start(t, "1.0", carl)
	file := c.export(t, p.ID)
	c.sign(t, p.ID, anna)
	if got := c.get(t, p.ID); got.State != repo.PendingReady {
		t.Fatalf("before: %+v", got)
	}
	err := c.repo.EditTargets(t.Context(), func(targets *metadata.TargetsType) {
		key, err := metadata.KeyFromPublicKey(dora.Public())
		if err != nil {
			t.Fatal(err)
		}
		targets.Delegations.Keys[dora.id] = key
		for i := range targets.Delegations.Roles {
			if r := &targets.Delegations.Roles[i]; r.Name == "ring-servers" {
				r.KeyIDs = []string{anna.id, ben.id, dora.id}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	got := c.get(t, p.ID)
	if got.State != repo.PendingStale || !strings.Contains(got.Why[0], "has other keys") || !slices.Equal(got.Roles[0].Signed, []string{anna.id}) ||
		len(got.Notes) != 1 || !strings.Contains(got.Notes[0], "the signature of key "+carl.id[:8]+" no longer counts") {
		t.Errorf("after: %+v", got)
	}
	if _, err := c.online().PublishPending(t.Context(), p.ID, false); !errors.Is(err, repo.ErrStale) {
		t.Errorf("PublishPending = %v, want ErrStale", err)
	}
	next := c.rebase(t, p.ID)
	if next.Roles[0].SHA256 != p.Roles[0].SHA256 || !slices.Equal(next.Roles[0].Signed, []string{anna.id}) {
		t.Errorf("RebasePending = %+v", next)
	}
	if _, err := c.as(carl).SignPending(t.Context(), next); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("the old key signs: %v, want ErrKeys", err)
	}
	if sigs, _, err := signFile(t, file, c.root(t), ben); err != nil {
		t.Error(err) // that machine does not know better
	} else if _, err := c.importFile(t, sigs); !errors.Is(err, repo.ErrClosed) {
		t.Errorf("ImportPending = %v, want ErrClosed", err)
	}
	c.sign(t, next.ID, dora)
	if _, err := c.online().PublishPending(t.Context(), next.ID, false); err != nil {
		t.Fatal(err)
	}
	if !c.approved(t, "1.0") {
		t.Error("it is not published")
	}
	c.mustVerify(t)
}
