package repo_test

import (
	"crypto"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// clocked is the fixture with a clock that the test moves.
func clocked(t *testing.T) (*fixture, *time.Time) {
	f := newFixture(t)
	now := time.Now()
	f.repo = repo.Open(f.store, repo.Config{Keys: f.keys.find, Now: func() time.Time { return now }})
	return f, &now
}

func (f *fixture) start(t *testing.T, version, ring, steps string) {
	t.Helper()
	ro := repo.Rollout{Product: "hello", Version: version, Ring: ring}
	if steps != "" {
		var err error
		if ro.Steps, err = rollout.ParseSteps(steps); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.repo.StartRollout(t.Context(), ro, false); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) status(t *testing.T, ring string) repo.RingStatus {
	t.Helper()
	all, err := f.repo.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all[slices.IndexFunc(all, func(s repo.RingStatus) bool { return s.Ring == ring })]
}

func TestAddRing(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	a, b := f.keys.add(t, "lab-a"), f.keys.add(t, "lab-b")
	cfg := repo.RoleConfig{Keys: []crypto.PublicKey{a.Public(), b.Public()}, Threshold: 2}
	policy := rollout.Policy{Ring: "lab", Steps: "10%@0h,100%@1d", Soak: 3600, FailureBudget: "2%", AuthorMayNotApprove: true}

	change, err := f.repo.AddRing(ctx, cfg, policy, true)
	if err != nil || change.Timestamp != 0 {
		t.Fatalf("dry run: %+v, %v", change, err)
	}
	if _, err := f.repo.AddRing(ctx, cfg, policy, false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.repo.AddRing(ctx, cfg, policy, false); !errors.Is(err, repo.ErrExists) {
		t.Errorf("a second time: %v, want ErrExists", err)
	}
	rings, err := f.repo.Rings(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := rings[slices.IndexFunc(rings, func(r repo.Ring) bool { return r.Name == "lab" })]
	if r.Threshold != 2 || r.Policy.Steps != policy.Steps || r.Policy.Soak != 3600 || len(r.Signers) != 2 {
		t.Errorf("ring lab is %+v", r)
	}
	f.add(t, "1.0", []byte("one"))
	f.start(t, "1.0", "lab", "")
	if got := rollout.FormatSteps(f.status(t, "lab").Entries[0].Steps); got != "10%@0h,100%@1d" {
		t.Errorf("steps %s, want the policy's", got)
	}
	f.mustVerify(t)

	for name, policy := range map[string]rollout.Policy{
		"no name":      {Ring: ".."},
		"steps fall":   {Ring: "x", Steps: "50%@0h,10%@1h"},
		"bad budget":   {Ring: "x", FailureBudget: "lots"},
		"after nobody": {Ring: "x", After: "nobody"},
		"after itself": {Ring: "x", After: "x"},
	} {
		if _, err := f.repo.AddRing(ctx, cfg, policy, false); !errors.Is(err, rollout.ErrBad) && !errors.Is(err, repo.ErrUnknownRing) {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
}

// A ring cannot loosen its own policy: that takes the signatures of targets.
func TestPolicyIsNotTheRings(t *testing.T) {
	f := newFixture(t)
	set := func(p *rollout.Policy) error { p.ChangeRequired = true; return nil }
	alone := repo.Open(f.store, repo.Config{Keys: f.keys.without("targets")})
	if _, err := alone.SetPolicy(t.Context(), "servers", set, false); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("without the keys of targets: %v, want ErrKeys", err)
	}
	change, err := f.repo.SetPolicy(t.Context(), "servers", set, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range change.Roles {
		if strings.HasPrefix(r.Role, "ring-") {
			t.Errorf("%s was signed", r.Role)
		}
	}
	rings, err := f.repo.Rings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rings {
		if r.Policy.ChangeRequired != (r.Name == "servers") {
			t.Errorf("%s: %+v", r.Name, r.Policy)
		}
	}
	f.add(t, "1.0", []byte("one"))
	f.start(t, "1.0", "servers", "")
	f.start(t, "1.0", "users", "")
	if w := f.mustVerify(t).Warnings; len(w) != 1 || !strings.Contains(w[0].What, "without a change record") {
		t.Errorf("warnings %+v, want one about the missing change record", w)
	}
}

func TestPauseAndResume(t *testing.T) {
	f, now := clocked(t)
	ctx := t.Context()
	f.add(t, "1.0", []byte("one"))
	if _, err := f.repo.Pause(ctx, "hello", "1.0", "users", "r", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pause of what is not there: %v", err)
	}
	f.start(t, "1.0", "users", "10%@0h,100%@10h")
	if _, err := f.repo.Resume(ctx, "hello", "1.0", "users", false, false); !errors.Is(err, repo.ErrExists) {
		t.Errorf("resume of what runs: %v, want ErrExists", err)
	}
	*now = now.Add(5 * time.Hour)
	if _, err := f.repo.Pause(ctx, "hello", "1.0", "users", "too many calls", false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.repo.Expedite(ctx, "hello", "1.0", "users", "r", false); !errors.Is(err, repo.ErrPolicy) {
		t.Errorf("expedite of what is paused: %v, want ErrPolicy", err)
	}
	*now = now.Add(15 * time.Hour)
	if s := f.status(t, "users").Rollouts[0]; s.State != repo.Paused || s.Reason != "too many calls" || s.Next != nil {
		t.Errorf("paused: %+v", s)
	}
	if _, err := f.repo.Resume(ctx, "hello", "1.0", "users", false, false); err != nil {
		t.Fatal(err)
	}
	s := f.status(t, "users").Rollouts[0]
	if s.State != repo.Running || s.Share != 1000 || s.Left > 5*3600 || s.Left < 5*3600-2 || s.Next == nil {
		t.Errorf("resumed: %+v, want 10 %% and 5 hours to go", s)
	}
	if _, err := f.repo.Expedite(ctx, "hello", "1.0", "users", "exploited", false); err != nil {
		t.Fatal(err)
	}
	if s := f.status(t, "users").Rollouts[0]; s.State != repo.Complete || s.Reason != "exploited" || s.Share != rollout.All {
		t.Errorf("expedited: %+v", s)
	}
}

func TestStatesOfRollouts(t *testing.T) {
	f, now := clocked(t)
	ctx := t.Context()
	for _, v := range []string{"1.0", "1.1", "1.2", "1.3"} {
		f.add(t, v, []byte(v))
	}
	f.start(t, "1.0", "users", "")
	f.start(t, "1.1", "users", "0%@0h..100%@100h")
	f.start(t, "1.2", "users", "")
	*now = now.Add(25 * time.Hour)
	_, err := f.repo.StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.3", Ring: "users", At: now.Add(time.Hour)}, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.repo.WithdrawPatch(ctx, "hello", "1.2", false); err != nil {
		t.Fatal(err)
	}
	want := map[string]repo.RolloutState{"1.0": repo.Complete, "1.1": repo.Running, "1.2": repo.Withdrawn, "1.3": repo.NotBegun}
	for _, s := range f.status(t, "users").Rollouts {
		if s.State != want[s.Version] {
			t.Errorf("%s is %s, want %s", s.Version, s.State, want[s.Version])
		}
		if s.Version == "1.1" && (s.Share != 2500 || s.Left != 75*3600) {
			t.Errorf("the ramp: %+v", s)
		}
	}
	if _, _, err := f.repo.AddHalt(ctx, repo.HaltScope{Product: "hello", Version: "1.0"}, "crash", "anna", false); err != nil {
		t.Fatal(err)
	}
	s := f.status(t, "users").Rollouts[0]
	if s.State != repo.Halted || s.Reason != "crash" || len(s.Halts) != 1 {
		t.Errorf("halted: %+v", s)
	}
	if _, err := f.repo.LiftHalts(ctx, s.Halts, []string{"users"}, false); err != nil {
		t.Fatal(err)
	}
	if s := f.status(t, "users").Rollouts[0]; s.State != repo.Complete {
		t.Errorf("lifted: %+v", s)
	}
}

// From ring to ring only after the soak time, and neither halted nor paused.
func TestPromote(t *testing.T) {
	f, now := clocked(t)
	ctx := t.Context()
	after := func(p *rollout.Policy) error { p.After, p.Soak = "users", 24*3600; return nil }
	if _, err := f.repo.SetPolicy(ctx, "servers", after, false); err != nil {
		t.Fatal(err)
	}
	f.add(t, "1.0", []byte("one"))
	ro := repo.Rollout{Product: "hello", Version: "1.0", Ring: "servers"}
	try := func(what string, want error) {
		t.Helper()
		_, err := f.repo.StartRollout(ctx, ro, true)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		_, _, obstacle, err := f.repo.Preview(ctx, ro)
		if err != nil || !errors.Is(obstacle, want) {
			t.Errorf("preview, %s: %v, %v", what, obstacle, err)
		}
	}
	try("not in users", repo.ErrPolicy)
	f.start(t, "1.0", "users", "10%@0h,100%@10h")
	*now = now.Add(9 * time.Hour)
	try("at 10 %", repo.ErrPolicy)
	*now = now.Add(24 * time.Hour)
	try("an hour early", repo.ErrPolicy)
	*now = now.Add(2 * time.Hour)
	try("soaked", nil)
	halts, _, err := f.repo.AddHalt(ctx, repo.HaltScope{Product: "hello"}, "crash", "anna", false)
	if err != nil {
		t.Fatal(err)
	}
	try("halted", repo.ErrPolicy)
	if _, err := f.repo.LiftHalts(ctx, []string{halts[0].ID}, []string{"users"}, false); err != nil {
		t.Fatal(err)
	}
	try("lifted in one ring only", repo.ErrPolicy)
	if _, err := f.repo.LiftHalts(ctx, []string{halts[0].ID}, []string{"servers"}, false); err != nil {
		t.Fatal(err)
	}
	try("lifted in both", nil)
	if _, err := f.repo.Pause(ctx, "hello", "1.0", "users", "r", false); err != nil {
		t.Fatal(err)
	}
	try("paused", repo.ErrPolicy)
	ro.Expedite = true
	try("an emergency", nil)
	ro.Expedite, ro.From = false, "key-users"
	try("from another ring than it has been in", repo.ErrPolicy)
	ro.From = "servers"
	try("from itself", repo.ErrPolicy)
}

// An emergency does not wait for a start that is still to come.
func TestExpediteBeforeItsTime(t *testing.T) {
	f, now := clocked(t)
	f.add(t, "1.0", []byte("one"))
	ro := repo.Rollout{Product: "hello", Version: "1.0", Ring: "users", At: now.Add(72 * time.Hour)}
	if _, err := f.repo.StartRollout(t.Context(), ro, false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.repo.Expedite(t.Context(), "hello", "1.0", "users", "exploited", false); err != nil {
		t.Fatal(err)
	}
	if s := f.status(t, "users").Rollouts[0]; s.State != repo.Complete || s.Share != rollout.All {
		t.Errorf("%+v, want it out to everyone", s)
	}
	if _, err := f.repo.Expedite(t.Context(), "hello", "1.0", "users", "exploited", false); !errors.Is(err, repo.ErrExists) {
		t.Errorf("a second time: %v, want ErrExists", err)
	}
}

// A ring says that it leaves a patch as it is, and why, until it starts it.
func TestHold(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.add(t, "1.0", []byte("one"))
	if _, err := f.repo.Hold(ctx, "hello", "1.0", "users", "not before the fair", false); err != nil {
		t.Fatal(err)
	}
	if p := f.status(t, "users"); len(p.Holds) != 1 || p.Holds[0].Reason != "not before the fair" || len(p.Entries) != 0 {
		t.Errorf("held: %+v", p)
	}
	f.start(t, "1.0", "users", "")
	if p := f.status(t, "users"); len(p.Holds) != 0 || len(p.Entries) != 1 {
		t.Errorf("started: %+v", p)
	}
	if _, err := f.repo.Hold(ctx, "hello", "1.0", "users", "r", false); !errors.Is(err, repo.ErrExists) {
		t.Errorf("hold of what is approved: %v, want ErrExists", err)
	}
}

func TestMinimumSafe(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.add(t, "1.0", []byte("one"))
	if _, err := f.repo.SetMinimumSafe(ctx, "hello", "1.0", "users", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("to what is not approved: %v", err)
	}
	f.start(t, "1.0", "users", "")
	if _, err := f.repo.SetMinimumSafe(ctx, "hello", "1.0", "users", false); err != nil {
		t.Fatal(err)
	}
	if got := f.status(t, "users").MinimumSafe["hello"]; got != "1.0" {
		t.Errorf("minimum-safe is %q", got)
	}
	if _, err := f.repo.RemoveRollout(ctx, "hello", "1.0", "users", false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.repo.SetMinimumSafe(ctx, "hello", "", "users", false); err != nil {
		t.Fatal(err)
	}
	if p := f.status(t, "users"); len(p.Entries) != 0 || len(p.MinimumSafe) != 0 {
		t.Errorf("%+v", p)
	}
}

// What is there already is left as it is when a further platform joins it.
func TestStartForAFurtherPlatform(t *testing.T) {
	f := newFixture(t)
	f.add(t, "1.0", []byte("one"))
	f.start(t, "1.0", "users", "10%@0h,100%@10h")
	p := newPatch("1.0")
	p.Platform, p.ID = "linux-any", "hello@1.0/linux-any"
	_, _, err := f.repo.AddPatch(t.Context(), p, "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.start(t, "1.0", "users", "20%@0h,100%@10h")
	s := f.status(t, "users")
	if len(s.Entries) != 2 || s.Entries[0].Steps[0].Percent != 1000 || s.Entries[1].Steps[0].Percent != 2000 {
		t.Errorf("%+v", s.Entries)
	}
}

// What somebody edits in the store by hand, without the keys, is found, and
// nothing is built on it.
func TestEditedByHandIsFound(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	set := func(p *rollout.Policy) error { p.After, p.Soak = "users", 86400; return nil }
	if _, err := f.repo.SetPolicy(ctx, "servers", set, false); err != nil {
		t.Fatal(err)
	}
	pub := f.add(t, "1.0", []byte("one"))
	f.start(t, "1.0", "users", "10%@0h,99%@24h")
	f.mustVerify(t)
	for name, edit := range map[string]struct{ pattern, old, new string }{
		"steps of a plan":         {"targets/rings/users/*.plan.json", `"percent":10`, `"percent":90`},
		"content in a plan":       {"targets/rings/users/*.plan.json", pub.SHA256, strings.Repeat("ab", 32)},
		"the plan a ring signs":   {"metadata/2.ring-users.json", `"sha256":"`, `"sha256":"00`},
		"the policy of a ring":    {"metadata/2.targets.json", `"soak":86400`, `"soak":0`},
		"the threshold of a ring": {"metadata/2.targets.json", `"threshold":1`, `"threshold":0`},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := filepath.Glob(filepath.Join(f.dir, edit.pattern))
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, file := range files {
				before, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				after := strings.Replace(string(before), edit.old, edit.new, 1)
				if after == string(before) {
					continue
				}
				found = true
				if err := os.WriteFile(file, []byte(after), 0o644); err != nil {
					t.Fatal(err)
				}
				defer os.WriteFile(file, before, 0o644)
			}
			if !found {
				t.Fatalf("%s: nothing to edit in %q", edit.old, files)
			}
			if report := f.verify(t); !errors.Is(report.Err(), repo.ErrFaults) {
				t.Errorf("Verify found nothing: %+v", report)
			}
			if _, err := f.repo.Pause(ctx, "hello", "1.0", "users", "r", false); !errors.Is(err, repo.ErrNotTrusted) {
				t.Errorf("Pause on top of it = %v, want ErrNotTrusted", err)
			}
		})
	}
	f.mustVerify(t)
}
