package repo_test

import (
	"crypto"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// What a signer is told about rings, ramps, pauses, holds and emergencies.
func TestWordsAboutRings(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	ctx := t.Context()
	ramp, err := rollout.ParseSteps("1%@0h,1%@24h..100%@72h")
	if err != nil {
		t.Fatal(err)
	}
	c.fixture.start(t, "1.0", "users", "10%@0h,100%@24h")
	c.add(t, "1.1", []byte("two"))
	r := c.waiting(repo.WaitAlways)
	own := newTestKey(t)
	for name, tt := range map[string]struct {
		do   func() (*repo.Change, error)
		want []string
	}{
		"ramp": {func() (*repo.Change, error) {
			return r.StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.1", Ring: "servers", Steps: ramp}, false)
		}, []string{"1 % after 0s, 1 % after 24h0m0s, growing evenly to 100 % after 72h0m0s"}},
		"emergency": {func() (*repo.Change, error) {
			return r.StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.1", Ring: "servers", Steps: ramp, Expedite: true, ExpediteReason: "exploited"}, false)
		}, []string{"ALL of them at once from", "past steps and windows: exploited"}},
		"emergency later": {func() (*repo.Change, error) {
			return r.Expedite(ctx, "hello", "1.0", "users", "exploited", false)
		}, []string{"ring users: changes the rollout of hello@1.0/any (hello.bin); it is ALL of them at once"}},
		"pause": {func() (*repo.Change, error) {
			return r.Pause(ctx, "hello", "1.0", "users", "swamped", false)
		}, []string{"it is PAUSED (swamped), else from", "paused = true"}},
		"hold": {func() (*repo.Change, error) {
			return r.Hold(ctx, "hello", "1.1", "users", "audit", false)
		}, []string{"ring users: leaves hello@1.1/any (hello.bin) as it is for now: audit"}},
		"remove": {func() (*repo.Change, error) {
			return r.RemoveRollout(ctx, "hello", "1.0", "users", false)
		}, []string{"ring users: no longer approves hello@1.0/any"}},
		"minimum-safe": {func() (*repo.Change, error) {
			return r.SetMinimumSafe(ctx, "hello", "1.0", "users", false)
		}, []string{"product hello must not fall below version 1.0"}},
		"ring": {func() (*repo.Change, error) {
			return r.AddRing(ctx, repo.RoleConfig{Keys: []crypto.PublicKey{own.Public()}}, rollout.Policy{Ring: "lab", After: "users", Soak: 7200}, false)
		}, []string{"new role ring-lab: 1 of 1", "targets: policy of ring lab: after ring users, soaked for 2h", "soak = 7200"}},
		"policy": {func() (*repo.Change, error) {
			return r.SetPolicy(ctx, "servers", func(p *rollout.Policy) error { p.ChangeRequired = true; return nil }, false)
		}, []string{"targets: policy of ring servers: change record required", "change_required = true"}},
	} {
		t.Run(name, func(t *testing.T) {
			change, err := tt.do()
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, role := range change.Pending.Roles {
				all = append(all, role.Words...)
			}
			words := strings.Join(all, "\n")
			for _, want := range tt.want {
				if !strings.Contains(words, want) {
					t.Errorf("it does not say %q:\n%s", want, words)
				}
			}
		})
	}
}

// Two policies that wait at the same time: the second one is made anew on top of
// the first.
func TestRebaseOfPolicies(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	ctx := t.Context()
	r := c.waiting(repo.WaitAlways)
	set := func(ring string, soak int64) string {
		t.Helper()
		change, err := r.SetPolicy(ctx, ring, func(p *rollout.Policy) error { p.Soak = soak; return nil }, false)
		if err != nil {
			t.Fatal(err)
		}
		return change.Pending.ID
	}
	first, second := set("users", 3600), set("servers", 7200)
	c.sign(t, first, c.keys.role["targets"])
	if _, err := c.online().PublishPending(ctx, first, false); err != nil {
		t.Fatal(err)
	}
	next := c.rebase(t, second)
	c.sign(t, next.ID, c.keys.role["targets"])
	if _, err := c.online().PublishPending(ctx, next.ID, false); err != nil {
		t.Fatal(err)
	}
	rings, err := c.repo.Rings(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, ring := range rings {
		if want := map[string]int64{"users": 3600, "servers": 7200}[ring.Name]; ring.Policy.Soak != want {
			t.Errorf("ring %s soaks for %d s, want %d", ring.Name, ring.Policy.Soak, want)
		}
	}
}
