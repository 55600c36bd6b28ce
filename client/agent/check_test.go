//go:build unix

package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

func halt(id string) rollout.Halt {
	return rollout.Halt{ID: id, Product: "hello", Since: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), Reason: "it crashes", By: "ada"}
}

// installed puts a version of hello on the machine before the test.
func installed(t *testing.T, f *fixture, version string) {
	t.Helper()
	before := *f.plan
	f.plan.Entries = nil
	f.add("hello", version, "hello.tar", program(version))
	f.publish()
	f.enroll()
	f.wantApply("hello "+version+" committed", nil)
	*f.plan = before
}

// One row for each condition of installing, DESIGN §2.
func TestConditions(t *testing.T) {
	other := strings.Repeat("ab", 32)
	offered := func(f *fixture) *rollout.Entry { return f.add("hello", "1.1", "hello.tar", program("1.1")) }
	tests := []struct {
		name    string
		arrange func(f *fixture)
		state   agent.State
		why     string
		last    string // name of the last question in the trace
		err     error
	}{
		{"all conditions hold", func(f *fixture) { offered(f) }, agent.StateOffered, "all conditions hold", "fresh", nil},
		{"other content approved", func(f *fixture) { offered(f).SHA256 = other }, agent.StateRefused, "approved other content", "sha256", nil},
		{"no such product", func(f *fixture) {
			f.plan.Entries = append(f.plan.Entries, rollout.Entry{Patch: "patches/ghost/1.0/any/x.tar", SHA256: other, Custom: other, NotBefore: time.Now()})
		}, agent.StateRefused, "nobody who may sign for ghost", "product", nil},
		{"signed by another product", func(f *fixture) {
			e := offered(f)
			f.repo.Targets["product-base"].Signed.Targets[e.Patch] = f.repo.Targets["product-hello"].Signed.Targets[e.Patch]
			delete(f.repo.Targets["product-hello"].Signed.Targets, e.Patch)
		}, agent.StateRefused, "nobody who may sign for hello", "product", nil},
		{"speaks for another version", func(f *fixture) {
			f.add("hello", "1.1", "hello.tar", program("1.1"))
			p := &patch.Patch{Format: 1, ID: "hello@9.9/any", Product: "hello", Version: "9.9", Platform: "any", Kind: patch.KindArchive, Released: time.Now().UTC()}
			f.sign("product-hello", f.plan.Entries[0].Patch, program("1.1"), p)
		}, agent.StateRefused, "does not vouch for it", "product", nil},
		{
			"no patch metadata", func(f *fixture) { f.repo.Targets["product-hello"].Signed.Targets[offered(f).Patch].Custom = nil },
			agent.StateRefused, "does not vouch for it", "product", nil,
		},
		{
			"halted", func(f *fixture) { offered(f); f.halts.Halts = []rollout.Halt{halt("h1")} },
			agent.StateHalted, "stopped since 2026-01-03T00:00:00Z by ada: it crashes", "halt", nil,
		},
		{"other recipes than those approved", func(f *fixture) { offered(f).Custom = other }, agent.StateRefused, "approved other recipes", "recipes", nil},
		{"halted by sha256", func(f *fixture) {
			e := offered(f)
			h := halt("h1")
			h.Product, h.SHA256 = "", e.SHA256
			f.halts.Halts = []rollout.Halt{h}
		}, agent.StateHalted, "it crashes", "halt", nil},
		{"everything halted", func(f *fixture) {
			offered(f)
			h := halt("h1")
			h.Product, h.All = "", true
			f.halts.Halts = []rollout.Halt{h}
		}, agent.StateHalted, "it crashes", "halt", nil},
		{"halt lifted", func(f *fixture) {
			offered(f)
			f.halts.Halts = []rollout.Halt{halt("h1")}
			f.plan.Lifts = []string{"h1"}
		}, agent.StateOffered, "", "fresh", nil},
		{"halt taken off the list", func(f *fixture) {
			offered(f)
			f.halts.Halts = []rollout.Halt{halt("h1")}
			f.publish()
			f.enroll()
			_, err := f.check()
			f.must(err)
			f.halts.Halts = nil
		}, agent.StateHalted, "it crashes", "halt", nil},
		{"halt replaced under its id", func(f *fixture) {
			offered(f)
			f.halts.Halts = []rollout.Halt{halt("h1")}
			f.publish()
			f.enroll()
			_, err := f.check()
			f.must(err)
			f.halts.Halts[0].Product = "base"
		}, agent.StateHalted, "it crashes", "halt", nil},
		{
			"paused", func(f *fixture) { e := offered(f); e.Paused, e.PausedReason = true, "wait for QA" },
			agent.StateWaiting, "paused: wait for QA", "paused", nil,
		},
		{"not yet", func(f *fixture) { offered(f).NotBefore = time.Now().Add(time.Hour) }, agent.StateWaiting, "it starts at", "not-before", nil},
		{
			"not its step", func(f *fixture) {
				offered(f).Steps = []rollout.Step{{At: 0, Percent: 0}, {At: 1 << 27, Percent: rollout.All}}
			},
			agent.StateWaiting, "this machine comes at", "step", nil,
		},
		{"outside its window", func(f *fixture) {
			later := time.Now().Add(2 * time.Hour)
			offered(f).Windows = []rollout.Window{{From: later.Format("15:04"), To: later.Add(time.Minute).Format("15:04")}}
		}, agent.StateWaiting, "maintenance windows", "window", nil},
		{"other system", func(f *fixture) {
			f.add("hello", "1.1", "hello.tar", program("1.1"), func(p *patch.Patch) { p.Applies.OS = []string{"plan9"} })
		}, agent.StateNotApplicable, "not for " + runtime.GOOS, "applies", nil},
		{"requirement missing", func(f *fixture) {
			f.add("hello", "1.1", "hello.tar", program("1.1"), func(p *patch.Patch) { p.Applies.Requires = []string{"base>=2"} })
		}, agent.StateNotApplicable, "requires base>=2", "applies", nil},
		{"too old a version installed", func(f *fixture) {
			installed(f.T, f, "1.0")
			f.add("hello", "1.2", "hello.tar", program("1.2"), func(p *patch.Patch) { p.Applies.MinVersion = "1.1" })
		}, agent.StateNotApplicable, "needs at least 1.1", "applies", nil},
		{"installed", func(f *fixture) { installed(f.T, f, "1.1"); offered(f) }, agent.StateInstalled, "this version is installed", "installed", nil},
		{
			"downgrade", func(f *fixture) { installed(f.T, f, "1.2"); offered(f) },
			agent.StateNotApplicable, "1.2 is installed, which is newer", "version", nil,
		},
		{"downgrade the ring asks for", func(f *fixture) {
			installed(f.T, f, "1.2")
			offered(f)
			f.plan.MinimumSafe = map[string]string{"hello": "1.1"}
		}, agent.StateOffered, "", "fresh", nil},
		{"downgrade below the safe version", func(f *fixture) {
			installed(f.T, f, "1.2")
			offered(f)
			f.plan.MinimumSafe = map[string]string{"hello": "1.1.1"}
		}, agent.StateRefused, "not fall below 1.1.1", "minimum-safe", nil},
		{"downgrade by a mere halt", func(f *fixture) {
			installed(f.T, f, "1.2")
			e := f.add("hello", "1.2", "hello.tar", program("1.2"))
			h := halt("h1")
			h.Product, h.SHA256 = "", e.SHA256
			f.halts.Halts = []rollout.Halt{h}
			offered(f)
			f.plan.MinimumSafe = map[string]string{"hello": "1.0"}
		}, agent.StateNotApplicable, "the plan still holds hello 1.2", "version", nil},
		{
			"new, but below the safe version", func(f *fixture) { offered(f); f.plan.MinimumSafe = map[string]string{"hello": "2"} },
			agent.StateRefused, "not fall below 2", "minimum-safe", nil,
		},
		{"kind not taken", func(f *fixture) {
			offered(f)
			f.publish()
			o := f.enrollment()
			o.Kinds = []patch.Kind{patch.KindDeb}
			_, err := agent.Enroll(f.Context(), o)
			f.must(err)
		}, agent.StateNotApplicable, "does not take patches of kind archive", "kind", nil},
		{
			"older of two", func(f *fixture) { f.add("hello", "1.2", "hello.tar", program("1.2")); offered(f) },
			agent.StateSuperseded, "hello 1.2 is offered", "newest", nil,
		},
		{"expired", func(f *fixture) {
			offered(f)
			f.publish()
			f.enroll()
			_, err := f.check()
			f.must(err)
			f.opts.Now = func() time.Time { return time.Now().AddDate(0, 2, 0) }
		}, agent.StateStale, "expired", "fresh", tuf.ErrExpired},
		{"clock behind", func(f *fixture) {
			offered(f)
			f.repo.Timestamp.Signed.UnrecognizedFields = map[string]any{tuf.SignedAtField: time.Now().UTC().Format(time.RFC3339)}
			f.publish()
			f.enroll()
			_, err := f.check()
			f.must(err)
			f.opts.Now = func() time.Time { return time.Now().AddDate(0, -1, 0) }
		}, agent.StateStale, "clock", "fresh", tuf.ErrClock},
		{"offline", func(f *fixture) {
			offered(f)
			f.publish()
			f.enroll()
			_, err := f.check()
			f.must(err)
			f.srv.Close()
		}, agent.StateStale, "not fresh", "fresh", tuf.ErrOffline},
		{"replayed old metadata", func(f *fixture) {
			offered(f)
			f.publish()
			old := f.repo.Latest("timestamp")
			f.plan.Entries[0].Paused = true
			f.publish()
			f.enroll()
			_, err := f.check()
			f.must(err)
			f.plan.Entries[0].Paused = false
			f.publish()
			f.repo.SetLatest("timestamp", old)
		}, agent.StateWaiting, "paused", "paused", tuf.ErrNotTrusted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.arrange(f)
			if tt.err == nil {
				f.publish()
			}
			if _, err := agent.Open(f.opts); errors.Is(err, agent.ErrNotEnrolled) {
				f.enroll()
			}
			it, err := f.check()
			if !errors.Is(err, tt.err) {
				t.Fatalf("Check: %v, want %v", err, tt.err)
			}
			last := it.Trace[len(it.Trace)-1]
			if it.State != tt.state || !strings.Contains(it.Why, tt.why) || last.Name != tt.last || last.OK != (tt.state == agent.StateOffered || tt.state == agent.StateInstalled) {
				t.Errorf("%s: %q\n%+v\nwant %s: %q, ending with %s", it.State, it.Why, it.Trace, tt.state, tt.why, tt.last)
			}
			// What check does not offer, apply does not install.
			before := f.read(f.root, "hello/current/bin/hello")
			_, res, err := f.apply(agent.ApplyOptions{Only: it.Product + "@" + it.Version})
			if !errors.Is(err, tt.err) {
				t.Errorf("Apply: %v, want %v", err, tt.err)
			}
			changed := f.read(f.root, "hello/current/bin/hello") != before
			if offered := tt.state == agent.StateOffered; changed != offered || (len(res.Done) > 0) != offered {
				t.Errorf("Apply did %+v, and changed the machine: %t", res.Done, changed)
			}
		})
	}
}

// A plan that another ring signs, even under this ring's path, is none.
func TestOtherRingsApproval(t *testing.T) {
	f := newFixture(t)
	e := f.add("hello", "1.1", "hello.tar", program("1.1"))
	servers := &rollout.Plan{Format: 1, Ring: "servers", Entries: []rollout.Entry{*e}}
	f.plan.Entries = nil
	f.publish()
	f.enroll()
	for _, ring := range []string{"servers", "users"} {
		data, err := servers.Encode()
		f.must(err)
		f.repo.AddArtifact("ring-servers", layout.PlanPath("servers"), data)
		if ring == "users" {
			servers.Ring = "users"
			data, err = servers.Encode()
			f.must(err)
			f.repo.AddArtifact("ring-servers", layout.PlanPath("users"), data)
			delete(f.repo.Targets["ring-users"].Signed.Targets, layout.PlanPath("users"))
		}
		f.repo.PublishAll()
		f.wantApply("", nil)
		x, err := f.agent().Why(t.Context(), "hello@1.1")
		if err != nil || len(x.Items) != 1 || x.Items[0].State != agent.StateRefused ||
			!strings.Contains(x.Items[0].Why, "has not approved it") && !strings.Contains(x.Items[0].Why, "no plan is published") {
			t.Errorf("%s: Why = %+v, %v", ring, x, err)
		}
	}
	// A plan for another ring under this ring's own role.
	f.plan = servers
	f.plan.Ring = "servers"
	data, err := f.plan.Encode()
	f.must(err)
	f.repo.AddArtifact("ring-users", layout.PlanPath("users"), data)
	f.repo.PublishAll()
	if _, res, err := f.apply(agent.ApplyOptions{}); len(res.Done) > 0 {
		t.Errorf("a plan for ring servers was obeyed: %+v, %v", res, err)
	}
}

func TestWhy(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.add("hello", "1.10", "hello.tar", program("1.10")).Paused = true
	f.publish()
	f.enroll()
	a := f.agent()
	x, err := a.Why(t.Context(), "hello")
	if err != nil || len(x.Items) != 2 || x.Items[0].Version != "1.10" || x.Items[0].State != agent.StateWaiting || x.Items[1].State != agent.StateOffered || x.Note != "" {
		t.Fatalf("Why = %+v, %v", x, err)
	}
	var names []string
	for _, c := range x.Items[1].Trace {
		names = append(names, c.Name)
	}
	want := []string{"product", "ring", "halt", "plan", "sha256", "recipes", "paused", "not-before", "step", "window", "applies", "version", "fresh"}
	if !slices.Equal(names, want) {
		t.Errorf("trace %v, want %v", names, want)
	}
	for _, bad := range []string{"", "../x", "hello@", "hello@../x"} {
		if _, err := a.Why(t.Context(), bad); !errors.Is(err, patch.ErrBad) {
			t.Errorf("Why(%q) = %v, want ErrBad", bad, err)
		}
	}
	// Without a network: the last verified state, and a note.
	f.srv.Close()
	x, err = a.Why(t.Context(), "hello@1.10")
	if err != nil || len(x.Items) != 1 || x.Items[0].State != agent.StateWaiting || x.Note == "" {
		t.Errorf("offline: Why = %+v, %v", x, err)
	}
}

func TestWindowsDoNotHoldBackForever(t *testing.T) {
	f := newFixture(t)
	later := time.Now().Add(2 * time.Hour)
	e := f.add("hello", "1.1", "hello.tar", program("1.1"))
	e.Deadline = 3600
	e.Windows = []rollout.Window{{From: later.Format("15:04"), To: later.Add(time.Minute).Format("15:04")}}
	f.publish()
	f.enroll()
	it, err := f.check()
	if err != nil || it.State != agent.StateWaiting || it.Deadline.IsZero() {
		t.Fatalf("%+v, %v", it, err)
	}
	f.opts.Now = func() time.Time { return time.Now().Add(61 * time.Minute) }
	it, err = f.check()
	if err != nil || it.State != agent.StateOffered || !it.Overdue {
		t.Errorf("past its deadline: %+v, %v", it, err)
	}
}

// No program of a patch runs, not even to look around, unless the ring approved
// its recipes and nobody stopped it.
func TestDetectRunsOnlyWhatIsApproved(t *testing.T) {
	f := newFixture(t)
	ran := filepath.Join(t.TempDir(), "ran")
	detect := func(p *patch.Patch) { p.Detect = &patch.Recipe{Argv: []string{"touch", ran}} }
	for name, spoil := range map[string]func(e *rollout.Entry){
		"other content": func(e *rollout.Entry) { e.SHA256 = strings.Repeat("ab", 32) },
		"other recipes": func(e *rollout.Entry) { e.Custom = strings.Repeat("ab", 32) },
		"halted":        func(*rollout.Entry) { f.halts.Halts, f.plan.Lifts = []rollout.Halt{halt("h1")}, nil },
	} {
		f.plan.Entries, f.halts.Halts, f.plan.Lifts = nil, nil, []string{"h1"}
		spoil(f.add("hello", "1.1", "hello.tar", program("1.1"), detect))
		f.publish()
		if _, err := agent.Open(f.opts); errors.Is(err, agent.ErrNotEnrolled) {
			f.enroll()
		}
		f.wantApply("", nil)
		if _, err := os.Stat(ran); err == nil {
			t.Errorf("%s: its detect recipe was run", name)
		}
	}
	f.plan.Entries, f.halts.Halts, f.plan.Lifts = nil, nil, []string{"h1"}
	f.add("hello", "1.1", "hello.tar", program("1.1"), detect)
	f.publish()
	if _, err := f.check(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ran); err != nil {
		t.Errorf("approved, and its detect recipe was not run: %v", err)
	}
}
