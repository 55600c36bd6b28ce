//go:build unix

package agent_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// rebooter is a machine that installs a patch which needs a reboot.
type rebooter struct {
	*fixture
	boot, text string
	now        time.Time
	users      func() (bool, error)
	fails      error
	asked      []time.Duration // for reboots, after how long
}

func newRebooter(t *testing.T, set agent.Settings, entry func(*rollout.Entry)) *rebooter {
	r := &rebooter{fixture: newFixture(t), boot: "boot-1", now: time.Date(2026, 5, 4, 23, 0, 0, 0, time.UTC)}
	r.users = func() (bool, error) { return false, nil }
	r.opts.Now = func() time.Time { return r.now }
	r.opts.BootID = func() (string, error) { return r.boot, nil }
	r.opts.Settings = set
	e := r.add("hello", "1.1", "hello.bin", []byte("hello"), func(p *patch.Patch) {
		p.Kind = patch.KindCommand
		p.Install = &patch.Recipe{Argv: []string{"sh", "-c", "exit 3"}, Exit: map[string]patch.Outcome{"3": patch.Reboot}}
	})
	if entry != nil {
		entry(e)
	}
	r.publish()
	r.enroll()
	return r
}

// look is one look of Run.
func (r *rebooter) look() {
	r.Helper()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	waits := 0
	err := r.agent().Run(ctx, agent.RunOptions{Host: agent.Host{
		Users: func(context.Context) (bool, error) { return r.users() },
		Reboot: func(_ context.Context, after time.Duration, text string) error {
			r.asked, r.text = append(r.asked, after), text
			return r.fails
		},
	}, Network: func() string { // is asked at the beginning of each wait
		if waits++; waits == 2 {
			cancel()
		}
		return ""
	}})
	r.must(err)
}

func TestRebootPolicies(t *testing.T) {
	night := []rollout.Window{{From: "22:00", To: "05:00"}}
	warn := 15 * time.Minute
	somebody := func() (bool, error) { return true, nil }
	for _, tt := range []struct {
		name   string
		set    agent.Settings
		entry  func(*rollout.Entry)
		users  func() (bool, error)
		after  time.Duration // since it was installed
		want   int
		warned time.Duration
		why    string
	}{
		{name: "never", set: agent.Settings{Windows: night}},
		{name: "window, nobody there", set: agent.Settings{Reboot: agent.RebootWindow, Windows: night, RebootWarning: warn}, want: 1, why: "maintenance window"},
		{name: "window of the plan", set: agent.Settings{Reboot: agent.RebootWindow, RebootWarning: warn}, entry: func(e *rollout.Entry) { e.Windows = night }, want: 1, why: "maintenance window"},
		{name: "window, somebody there", set: agent.Settings{Reboot: agent.RebootWindow, Windows: night, RebootWarning: warn}, users: somebody, want: 1, warned: warn, why: "maintenance window"},
		{name: "window, nobody knows who is there", set: agent.Settings{Reboot: agent.RebootWindow, Windows: night, RebootWarning: warn}, users: func() (bool, error) { return false, errors.New("x") }, want: 1, warned: warn, why: "window"},
		{name: "the window ends before the warning is over", set: agent.Settings{Reboot: agent.RebootWindow, Windows: []rollout.Window{{From: "22:00", To: "23:10"}}, RebootWarning: warn}, users: somebody},
		{name: "no window is set", set: agent.Settings{Reboot: agent.RebootWindow}},
		{name: "outside", set: agent.Settings{Reboot: agent.RebootWindow, Windows: night}, after: 10 * time.Hour},
		{name: "before the deadline", set: agent.Settings{Reboot: agent.RebootDeadline}, entry: func(e *rollout.Entry) { e.Deadline, e.Grace = 3600, 3600 }, after: time.Hour},
		{name: "past deadline and grace", set: agent.Settings{Reboot: agent.RebootDeadline, RebootWarning: warn}, entry: func(e *rollout.Entry) { e.Deadline, e.Grace = 3600, 3600 }, users: somebody, after: 2 * time.Hour, want: 1, warned: warn, why: "the grace of hello 1.1"},
		{name: "no policy to force it", set: agent.Settings{Reboot: agent.RebootWindow}, entry: func(e *rollout.Entry) { e.Deadline = 1 }, after: time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRebooter(t, tt.set, tt.entry)
			if tt.users != nil {
				r.users = tt.users
			}
			r.wantApply("hello 1.1 reboot-pending", nil)
			r.now = r.now.Add(tt.after)
			r.look()
			if len(r.asked) != tt.want {
				t.Fatalf("asked for %d reboots, want %d", len(r.asked), tt.want)
			}
			st, err := r.agent().Status()
			r.must(err)
			events, err := r.agent().History()
			r.must(err)
			if tt.want == 0 {
				if !st.Reboot || st.Rebooting != nil || events[0].Step != agent.StepRebootPending {
					t.Errorf("status %v %v, history %s", st.Reboot, st.Rebooting, events[0].Step)
				}
				return
			}
			if r.asked[0] != tt.warned || !strings.Contains(r.text, "hello 1.1") {
				t.Errorf("asked after %s with %q", r.asked[0], r.text)
			}
			if st.Rebooting == nil || !strings.Contains(st.Rebooting.Why, tt.why) || events[0].Step != agent.StepRebooting || !strings.Contains(events[0].Why, tt.why) {
				t.Errorf("status %+v, history %+v; want %q", st.Rebooting, events[0], tt.why)
			}
		})
	}
}

// A machine is not rebooted over and over, nor begins anything while a reboot is
// announced; once it is up again the patch is checked.
func TestRebootIsBounded(t *testing.T) {
	set := agent.Settings{Reboot: agent.RebootWindow, Windows: []rollout.Window{{From: "00:00", To: "00:00"}}}
	r := newRebooter(t, set, nil)
	r.wantApply("hello 1.1 reboot-pending", nil)
	r.look()
	r.look() // it is announced already
	if len(r.asked) != 1 {
		t.Fatalf("asked for %d reboots", len(r.asked))
	}
	r.add("base", "1.0", "base.bin", []byte("base"))
	r.publish()
	it, err := r.check()
	r.must(err)
	if it.State != agent.StateWaiting || !strings.Contains(it.Why, "this machine reboots at 2026-05-04T23:00:00Z") {
		t.Errorf("%s: %s", it.State, it.Why)
	}
	for range 10 { // nobody lets it reboot
		r.now = r.now.Add(2 * time.Hour)
		r.look()
	}
	if len(r.asked) != 2 {
		t.Errorf("asked for %d reboots of which none came", len(r.asked))
	}
	r.boot = "boot-2"
	got, res, err := r.apply(agent.ApplyOptions{})
	if !strings.HasPrefix(got, "hello 1.1 committed") || err != nil {
		t.Errorf("after the reboot: %q, %v, %+v", got, err, res)
	}
	if st, err := r.agent().Status(); err != nil || st.Reboot || st.Rebooting != nil {
		t.Errorf("after the reboot: %+v, %v", st, err)
	}
}

func TestNoRebootOfItsOwnAccord(t *testing.T) {
	set := agent.Settings{Reboot: agent.RebootWindow, Windows: []rollout.Window{{From: "00:00", To: "00:00"}}}
	t.Run("halted meanwhile", func(t *testing.T) {
		r := newRebooter(t, set, nil)
		r.wantApply("hello 1.1 reboot-pending", nil)
		r.halts.Halts = []rollout.Halt{halt("h1")}
		r.publish()
		r.look()
		if len(r.asked) != 0 {
			t.Error("rebooted into a patch that somebody stopped")
		}
	})
	t.Run("boots cannot be told apart", func(t *testing.T) {
		r := newRebooter(t, set, nil)
		r.boot = ""
		r.wantApply("hello 1.1 reboot-pending", nil)
		r.look()
		if len(r.asked) != 0 {
			t.Error("rebooted a machine that cannot tell that it was")
		}
	})
	t.Run("the repository is away", func(t *testing.T) {
		r := newRebooter(t, set, nil)
		r.wantApply("hello 1.1 reboot-pending", nil)
		r.srv.Close()
		r.look()
		if len(r.asked) != 0 {
			t.Error("rebooted without fresh metadata")
		}
	})
	t.Run("it cannot be asked for", func(t *testing.T) {
		r := newRebooter(t, set, nil)
		r.fails = errors.New("no shutdown here")
		r.wantApply("hello 1.1 reboot-pending", nil)
		for range 5 {
			r.look()
			r.now = r.now.Add(2 * time.Hour)
		}
		if len(r.asked) != 2 {
			t.Errorf("asked %d times", len(r.asked))
		}
	})
}
