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

// What the machine's own settings hold back waits with words; a person who
// asks is not held back; and nobody is held back by what is not told.
func TestHeldBack(t *testing.T) {
	big := strings.Repeat("x", 2000)
	night := agent.Settings{Windows: []rollout.Window{{From: "22:00", To: "05:00"}}}
	battery := agent.Settings{MinBattery: 30}
	small := agent.Settings{Metered: agent.MeteredSmall, MeteredMax: 1000}
	for _, tt := range []struct {
		name    string
		set     agent.Settings
		power   agent.Power
		metered bool
		unknown bool // the system tells nothing
		patch   func(*patch.Patch)
		entry   func(*rollout.Entry)
		file    string
		want    string // the question that says no; "": offered
		why     string
	}{
		{name: "nothing set", power: agent.Power{Battery: true, Percent: 1}, metered: true},
		{name: "mains", set: battery, power: agent.Power{Percent: 1}},
		{name: "enough left", set: battery, power: agent.Power{Battery: true, Percent: 30}},
		{name: "little left", set: battery, power: agent.Power{Battery: true, Percent: 29}, want: "power", why: "29 % left, and nothing is begun below 30 %"},
		{name: "nobody knows how much is left", set: battery, power: agent.Power{Battery: true, Percent: -1}},
		{name: "saver", set: battery, power: agent.Power{Battery: true, Percent: 90, Saver: true}, want: "power", why: "saves power"},
		{name: "no deadline is worth a flat battery", set: battery, power: agent.Power{Battery: true, Percent: 5}, entry: func(e *rollout.Entry) { e.Deadline = 1 }, want: "power"},
		{name: "battery not told", set: battery, unknown: true},
		{name: "metered, and small", set: small, metered: true, file: "few"},
		{name: "metered, and large", set: small, metered: true, want: "metered", why: "2000 bytes are more than the 1000"},
		{name: "not metered", set: small},
		{name: "meter not told", set: small, unknown: true},
		{name: "metered, and critical", set: small, metered: true, patch: func(p *patch.Patch) { p.Severity = patch.SeverityCritical }},
		{name: "metered, and overdue", set: small, metered: true, entry: func(e *rollout.Entry) { e.Deadline = 1 }},
		{name: "metered, and nothing goes", set: agent.Settings{Metered: agent.MeteredNone}, metered: true, file: "few", want: "metered", why: "nothing is fetched over it"},
		{name: "outside its own window", set: night, want: "own-window", why: "this machine's own windows; the next one begins at 2026-05-04T22:00:00Z"},
		{name: "its own window past the deadline", set: night, entry: func(e *rollout.Entry) { e.Deadline = 1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
			f.opts.Now = func() time.Time { return now }
			f.opts.Settings = tt.set
			f.opts.Power = func(context.Context) (agent.Power, error) { return tt.power, unknown(tt.unknown) }
			f.opts.Metered = func(context.Context) (bool, error) { return tt.metered, unknown(tt.unknown) }
			if tt.file == "" {
				tt.file = big
			}
			change := []func(*patch.Patch){}
			if tt.patch != nil {
				change = append(change, tt.patch)
			}
			e := f.add("hello", "1.1", "hello.bin", []byte(tt.file), change...)
			if tt.entry != nil {
				tt.entry(e)
			}
			f.publish()
			f.enroll()
			_, err := f.check() // sees it
			f.must(err)
			now = now.Add(2 * time.Second)
			it, err := f.check()
			f.must(err)
			last := it.Trace[len(it.Trace)-1]
			if tt.want == "" {
				if it.State != agent.StateOffered {
					t.Fatalf("%s: %s", it.State, it.Why)
				}
				return
			}
			if it.State != agent.StateWaiting || last.Name != tt.want || last.OK || !strings.Contains(it.Why, tt.why) {
				t.Fatalf("%s at %s: %s; want waiting at %s: %s", it.State, last.Name, it.Why, tt.want, tt.why)
			}
			f.wantApply("", nil)
			if got, res, err := f.apply(agent.ApplyOptions{Now: true}); got != "hello 1.1 committed" || err != nil {
				t.Errorf("apply --now: %q, %v: %+v", got, err, res.Report)
			}
		})
	}
}

func unknown(yes bool) error {
	if yes {
		return errors.New("no such thing")
	}
	return nil
}

// What is on the disk already costs nothing on a metered line, and a line that
// turns metered during the download does not waste it.
func TestMeteredWhileDownloading(t *testing.T) {
	f := newFixture(t)
	asked := 0
	f.opts.Settings = agent.Settings{Metered: agent.MeteredNone}
	f.opts.Metered = func(context.Context) (bool, error) { asked++; return asked > 1, nil }
	f.add("hello", "1.1", "hello.bin", []byte("hello"))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.1 committed", nil)
	if asked < 2 {
		t.Errorf("asked %d times", asked)
	}
}

// A battery that runs low during the download keeps the installer from starting.
func TestBatteryAfterTheDownload(t *testing.T) {
	f := newFixture(t)
	left := 80
	f.opts.Settings = agent.DefaultSettings()
	f.opts.Power = func(context.Context) (agent.Power, error) {
		left -= 30
		return agent.Power{Battery: true, Percent: left}, nil
	}
	f.add("hello", "1.1", "hello.bin", []byte("hello"))
	f.publish()
	f.enroll()
	res := f.wantApply("hello 1.1 verified", nil)
	if !strings.Contains(res.Done[0].Why, "nothing is begun below 30 %") {
		t.Errorf("it says %q", res.Done[0].Why)
	}
}

// The looks of a machine tell whether it was there: who was away for a whole
// window of a plan that allows it catches up, and who was there waits.
func TestCatchUpAfterAMissedWindow(t *testing.T) {
	for _, there := range []bool{false, true} {
		f := newFixture(t)
		now := time.Date(2026, 5, 4, 12, 0, 30, 0, time.UTC)
		f.opts.Now = func() time.Time { return now }
		f.publish()
		f.enroll()
		f.wantApply("", nil) // at noon it is there
		e := f.add("hello", "1.1", "hello.bin", []byte("hello"))
		e.NotBefore = now
		e.Windows = []rollout.Window{{From: "22:00", To: "05:00"}}
		e.MissedWindow = rollout.MissedInstall
		e.Paused = true
		f.publish()
		if there {
			now = now.Add(11 * time.Hour)
			f.wantApply("", nil)
		} else {
			_, err := f.check() // who only looks could not have installed
			f.must(err)
		}
		now = time.Date(2026, 5, 5, 9, 0, 0, 0, time.UTC)
		f.plan.Entries[0].Paused = false
		f.publish()
		want := "hello 1.1 committed"
		if there {
			want = ""
		}
		f.wantApply(want, nil)
		// A clock that was ahead leaves no trace that counts.
		now = now.Add(-time.Hour)
		if _, err := f.agent().Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestSettingsRefused(t *testing.T) {
	for name, s := range map[string]agent.Settings{
		"shorter than a second":    {Interval: time.Millisecond},
		"longer than a week":       {Interval: 1000 * time.Hour},
		"spread":                   {Spread: -1},
		"min-battery":              {MinBattery: 101},
		"metered \"often\"":        {Metered: "often"},
		"must not be negative":     {Rate: -1},
		"would never end":          {MeteredRate: 10},
		"reboot \"now\"":           {Reboot: "now"},
		"reboot-warning":           {RebootWarning: 100 * time.Hour},
		"33 windows, at most 32 a": {Windows: make([]rollout.Window, 33)},
	} {
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: %v, want one with %q", s, err, name)
		}
		if _, err := agent.Open(agent.Options{Dir: t.TempDir(), Settings: s}); err == nil {
			t.Errorf("%+v: opened", s)
		}
	}
	if s := agent.DefaultSettings(); s.Check() != nil {
		t.Error(s.Check())
	}
}
