package rollout

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseWindow(t *testing.T) {
	for in, want := range map[string]string{
		"22:00-05:00":               "22:00-05:00",
		"mon-wed 22:00-05:00":       "mon,tue,wed 22:00-05:00",
		"fri-mon 08:00-09:30":       "fri,sat,sun,mon 08:00-09:30",
		" SAT,sun  8:00-24:00 ":     "sat,sun 8:00-00:00",
		"mon,mon-tue 10:00-10:00":   "mon,tue 10:00-10:00",
		"sun-sat 00:00-24:00":       "sun,mon,tue,wed,thu,fri,sat 00:00-00:00",
		"mon,tue,wed 22:00-05:00":   "mon,tue,wed 22:00-05:00",
		"sat,sun,mon-tue 1:00-2:00": "sat,sun,mon,tue 1:00-2:00",
	} {
		w, err := ParseWindow(in)
		if err != nil || w.String() != want {
			t.Errorf("ParseWindow(%q) = %q, %v; want %q", in, w, err, want)
		}
		if again, err := ParseWindow(w.String()); err != nil || again.String() != want {
			t.Errorf("ParseWindow(%q) = %q, %v", w, again, err)
		}
	}
	for _, in := range []string{"", "mon", "22:00", "mon 22:00", "someday 22:00-23:00", "mon- 22:00-23:00", "24:00-05:00", "22:00-25:00", "mon 22:00-05:00 x", "mon-fri=5 1:00-2:00"} {
		if w, err := ParseWindow(in); !errors.Is(err, ErrBad) {
			t.Errorf("ParseWindow(%q) = %q, %v; want ErrBad", in, w, err)
		}
	}
}

func berlin(t testing.TB, at string) time.Time {
	t.Helper()
	loc, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	now, err := time.ParseInLocation("2006-01-02 15:04", at, loc)
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// Clocks leave out 02:00 to 03:00 on 29 March, and show it twice on 25 October.
func TestWindowsWhenClocksChange(t *testing.T) {
	for _, tt := range []struct {
		from, to, day string
		hours         float64 // that the window takes; 0: it does not take place
		begins        string  // in UTC
	}{
		{"22:00", "04:00", "2026-03-28", 5, "21:00"},
		{"22:00", "04:00", "2026-10-24", 7, "20:00"},
		{"02:15", "02:45", "2026-03-29", 0, ""},
		{"02:30", "04:00", "2026-03-29", 1, "01:00"},
		{"01:00", "02:30", "2026-03-29", 1, "00:00"},
		{"02:30", "03:00", "2026-03-29", 0, ""},
		{"02:30", "03:00", "2026-10-25", 1.5, "00:30"},
		{"01:00", "02:30", "2026-10-25", 1.5, "23:00"},
		{"03:00", "02:30", "2026-03-28", 23, "02:00"},
		{"02:30", "02:30", "2026-03-28", 23.5, "01:30"},
	} {
		w := Window{From: tt.from, To: tt.to}
		from, to, ok := w.on(berlin(t, tt.day+" 12:00"))
		if ok != (tt.hours > 0) || ok && (to.Sub(from).Hours() != tt.hours || from.UTC().Format("15:04") != tt.begins) {
			t.Errorf("%s on %s: %v from %s to %s; want %.1f hours from %s UTC", w, tt.day, ok, from.UTC(), to.UTC(), tt.hours, tt.begins)
		}
	}
}

func TestInWindows(t *testing.T) {
	night := []Window{{From: "22:00", To: "06:00"}}
	late := []Window{{Days: []string{"fri"}, From: "04:00", To: "05:00"}}
	noon := []Window{{From: "12:00", To: "13:00"}}
	now := berlin(t, "2026-03-02 09:00") // a Monday
	for _, tt := range []struct {
		sets [][]Window
		in   bool
		next string
	}{
		{nil, true, "2026-03-02 09:00"},
		{[][]Window{nil, nil}, true, "2026-03-02 09:00"},
		{[][]Window{night}, false, "2026-03-02 22:00"},
		{[][]Window{night, late}, false, "2026-03-06 04:00"},
		{[][]Window{late, nil, night}, false, "2026-03-06 04:00"},
		{[][]Window{night, noon}, false, ""},
	} {
		in, next := InWindows(now, tt.sets...)
		if in != tt.in || next.IsZero() != (tt.next == "") || tt.next != "" && !next.Equal(berlin(t, tt.next)) {
			t.Errorf("%v: %v, %s; want %v, %s", tt.sets, in, next, tt.in, tt.next)
		}
	}
}

// A patch comes on Monday at 9; its windows are each night from 22 to 5.
func TestMissedWindows(t *testing.T) {
	every := Entry{Patch: pathA, SHA256: sumA, Custom: sumC, NotBefore: berlin(t, "2026-03-02 09:00"), Windows: []Window{{From: "22:00", To: "05:00"}}, MissedWindow: MissedInstall}
	for _, tt := range []struct {
		name   string
		change func(*Entry, *State)
		looks  []string
		now    string
		want   bool
		next   string
	}{
		{"away all night", nil, []string{"2026-03-02 18:00"}, "2026-03-03 08:00", true, ""},
		{"away, and the plan says wait", func(e *Entry, _ *State) { e.MissedWindow = MissedWait }, []string{"2026-03-02 18:00"}, "2026-03-03 08:00", false, "2026-03-03 22:00"},
		{"there for a minute", nil, []string{"2026-03-02 18:00", "2026-03-03 04:59"}, "2026-03-03 08:00", false, "2026-03-03 22:00"},
		{"looked as it ended", nil, []string{"2026-03-02 18:00", "2026-03-03 05:00"}, "2026-03-03 08:00", true, ""},
		{"there on one night, away on the next", nil, []string{"2026-03-02 23:00", "2026-03-03 18:00"}, "2026-03-04 08:00", true, ""},
		{"the night before it came", nil, []string{"2026-03-01 18:00"}, "2026-03-02 12:00", false, "2026-03-02 22:00"},
		{"its turn came in the night", func(e *Entry, _ *State) { e.Steps = []Step{{At: 14 * 3600, Percent: All}} }, []string{"2026-03-02 18:00"}, "2026-03-03 08:00", false, "2026-03-03 22:00"},
		{"nothing is known of the night", nil, nil, "2026-03-03 08:00", false, "2026-03-03 22:00"},
		{"first look in the morning", nil, []string{"2026-03-03 07:00"}, "2026-03-03 08:00", false, "2026-03-03 22:00"},
		{"away for weeks", nil, []string{"2026-02-20 18:00"}, "2026-03-20 08:00", true, ""},
		{"halted", func(_ *Entry, s *State) { s.Halts = []Halt{{ID: "h", All: true}} }, []string{"2026-03-02 18:00"}, "2026-03-03 08:00", false, ""},
		{"paused", func(e *Entry, _ *State) { e.Paused = true }, []string{"2026-03-02 18:00"}, "2026-03-03 08:00", false, ""},
		{"the machine's own windows count on", func(_ *Entry, s *State) { s.Windows = []Window{{From: "12:00", To: "13:00"}} }, []string{"2026-03-02 18:00"}, "2026-03-03 08:00", false, "2026-03-03 12:00"},
		{"own windows were missed too", func(_ *Entry, s *State) {
			s.Windows, s.MissedWindow = []Window{{From: "06:00", To: "07:00"}}, MissedInstall
		}, []string{"2026-03-02 18:00"}, "2026-03-03 08:00", true, ""},
		{"own policy cannot widen the plan's", func(e *Entry, s *State) {
			e.MissedWindow = ""
			s.Windows, s.MissedWindow = []Window{{From: "06:00", To: "07:00"}}, MissedInstall
		}, []string{"2026-03-02 18:00"}, "2026-03-03 08:00", false, "2026-03-03 22:00"},
	} {
		e, st := every, State{FirstSeen: every.NotBefore}
		if tt.change != nil {
			tt.change(&e, &st)
		}
		for _, at := range tt.looks {
			st.Looks = append(st.Looks, berlin(t, at))
		}
		st.Plan = &Plan{Format: Format, Ring: "users", Entries: []Entry{e}}
		d := Decide(Device{ID: "m1", Ring: "users"}, st, candidate(), berlin(t, tt.now))
		if d.Install != tt.want || d.Next.IsZero() != (tt.next == "") || tt.next != "" && !d.Next.Equal(berlin(t, tt.next)) {
			t.Errorf("%s: install %v, next %s (%s); want %v, %s", tt.name, d.Install, d.Next, d.Why(), tt.want, tt.next)
		}
	}
}

func TestDeadlines(t *testing.T) {
	day := 24 * time.Hour
	p := plan(func(e *Entry) {
		e.Steps = []Step{{At: 0, Percent: 0}, {At: int64(3 * day / time.Second), Percent: All}}
		e.Windows = []Window{{Days: []string{"sun"}, From: "01:00", To: "01:30"}}
		e.Deadline, e.Grace = int64(day/time.Second), int64(day/time.Second)
	})
	for _, tt := range []struct {
		seen, at              time.Duration // after the start
		own                   bool          // a window of the machine's own that is never open
		install, due, overdue bool
		force                 bool
		next                  time.Duration
	}{
		{seen: 0, at: 2 * day, next: 3 * day},
		{seen: 0, at: 3 * day, due: true, next: 4 * day}, // the deadline counts from its turn
		{seen: 0, at: 4*day - 1, due: true, next: 4 * day},
		{seen: 0, at: 4 * day, due: true, install: true, overdue: true},
		{seen: 0, at: 4 * day, own: true, due: true, install: true, overdue: true},
		{seen: 0, at: 5 * day, due: true, install: true, overdue: true, force: true},
		{seen: 20 * day, at: 20 * day, due: true, next: 21 * day},
	} {
		st := State{Plan: p, FirstSeen: start.Add(tt.seen)}
		if tt.own {
			st.Windows = []Window{{Days: []string{"sun"}, From: "05:00", To: "05:01"}}
		}
		d := Decide(Device{ID: "m1", Ring: "users"}, st, candidate(), start.Add(tt.at))
		if d.Install != tt.install || d.Overdue != tt.overdue || d.Force != tt.force || d.Due.IsZero() == tt.due ||
			d.Next.IsZero() != (tt.next == 0) || tt.next > 0 && !d.Next.Equal(start.Add(tt.next)) {
			t.Errorf("seen %s, at %s: %+v", tt.seen, tt.at, d)
		}
	}
}

// Whatever windows, looks and policies there are: nobody installs before its
// turn, halted or paused; everybody may past the deadline; and a machine's own
// windows let nobody in whom the plan keeps out.
func TestWindowProperties(t *testing.T) {
	windows := func(t *rapid.T, name string) (list []Window) {
		for range rapid.IntRange(0, 3).Draw(t, name) {
			clock := rapid.SampledFrom([]string{"00:00", "02:30", "03:00", "12:00", "23:59"})
			list = append(list, Window{Days: rapid.SampledFrom([][]string{nil, {"mon"}, {"sat", "sun"}}).Draw(t, "days"), From: clock.Draw(t, "from"), To: clock.Draw(t, "to")})
		}
		return list
	}
	policy := rapid.SampledFrom([]MissedWindow{"", MissedWait, MissedInstall})
	loc := berlin(t, "2026-01-01 00:00").Location()
	rapid.Check(t, func(t *rapid.T) {
		e := Entry{
			Patch: pathA, SHA256: sumA, Custom: sumC, NotBefore: start, Steps: drawSteps(t), Windows: windows(t, "windows"),
			MissedWindow: policy.Draw(t, "missed"), Deadline: rapid.Int64Range(0, 900_000).Draw(t, "deadline"),
		}
		st := State{
			Plan: &Plan{Format: Format, Ring: "users", Entries: []Entry{e}}, FirstSeen: drawMoment(t, "seen"),
			Windows: windows(t, "own"), MissedWindow: policy.Draw(t, "own missed"),
		}
		now := drawMoment(t, "now").In(loc)
		at := start.Add(-time.Hour)
		for range rapid.IntRange(0, 5).Draw(t, "looks") {
			if at = at.Add(time.Duration(rapid.Int64Range(0, 400_000).Draw(t, "gap")) * time.Second); at.Before(now) {
				st.Looks = append(st.Looks, at)
			}
		}
		dev := Device{ID: rapid.String().Draw(t, "machine"), Ring: "users"}
		d := Decide(dev, st, candidate(), now)
		turn, ok := e.Turn(Bucket(sumA, dev.ID))
		if d.Install && (!ok || now.Before(turn) || now.Before(e.NotBefore)) {
			t.Fatalf("installed before its turn: %+v", d)
		}
		if d.Overdue && !d.Install {
			t.Fatalf("held back past its deadline: %+v", d)
		}
		bare := st
		bare.Windows = nil
		if d.Install && !Decide(dev, bare, candidate(), now).Install {
			t.Fatal("own windows widened the plan's")
		}
		if !d.Install && !d.Next.IsZero() {
			if !d.Next.After(now) {
				t.Fatalf("Next %s is not after now", d.Next)
			}
			if d.Trace[len(d.Trace)-1].Name != "step" && d.Trace[len(d.Trace)-1].Name != "not-before" && !Decide(dev, st, candidate(), d.Next.In(loc)).Install {
				t.Fatalf("not in at its Next %s: %+v", d.Next, Decide(dev, st, candidate(), d.Next.In(loc)))
			}
		}
		st.Halts = []Halt{{ID: "h", All: true}}
		if Decide(dev, st, candidate(), now).Install {
			t.Fatal("installed although halted")
		}
		st.Halts = nil
		st.Plan.Entries[0].Paused = true
		if Decide(dev, st, candidate(), now).Install {
			t.Fatal("installed although paused")
		}
	})
}
