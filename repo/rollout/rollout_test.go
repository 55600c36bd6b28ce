package rollout

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var (
	sumA  = strings.Repeat("a1", 32)
	sumB  = strings.Repeat("b2", 32)
	sumC  = strings.Repeat("c3", 32)
	start = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC) // a Monday
)

const pathA = "patches/hello/1.1/linux-amd64/hello.deb"

func plan(change ...func(*Entry)) *Plan {
	e := Entry{Patch: pathA, SHA256: sumA, Custom: sumC, NotBefore: start}
	for _, c := range change {
		c(&e)
	}
	return &Plan{Format: Format, Ring: "users", Entries: []Entry{e}}
}

func candidate() Candidate {
	return Candidate{Path: pathA, SHA256: sumA, Custom: sumC, Product: "hello"}
}

func TestDecide(t *testing.T) {
	dev := Device{ID: "m1", Ring: "users"}
	all := func(*Entry) {}
	tests := []struct {
		name   string
		plan   *Plan
		halts  []Halt
		cand   func(*Candidate)
		at     time.Duration
		seen   time.Duration
		want   bool
		check  string
		nextIn time.Duration // after start; 0: none
	}{
		{name: "everyone from now", plan: plan(all), want: true, check: "window"},
		{name: "no plan", check: "ring"},
		{name: "other ring's plan", plan: &Plan{Format: 1, Ring: "servers", Entries: plan().Entries}, check: "ring"},
		{name: "not in plan", plan: &Plan{Format: 1, Ring: "users"}, check: "plan"},
		{name: "other content", plan: plan(all), cand: func(c *Candidate) { c.SHA256 = sumB }, check: "sha256"},
		{name: "other recipes", plan: plan(all), cand: func(c *Candidate) { c.Custom = sumB }, check: "recipes"},
		{name: "recipes unknown", plan: plan(all), cand: func(c *Candidate) { c.Custom = "" }, check: "recipes"},
		{name: "paused", plan: plan(func(e *Entry) { e.Paused = true }), check: "paused"},
		{name: "too early", plan: plan(all), at: -time.Second, check: "not-before", nextIn: 1},
		{name: "halted by content", plan: plan(all), halts: []Halt{{ID: "h", SHA256: sumA}}, check: "halt"},
		{name: "halted by product", plan: plan(all), halts: []Halt{{ID: "h", Product: "hello"}}, check: "halt"},
		{name: "halted by all", plan: plan(all), halts: []Halt{{ID: "h", All: true}}, check: "halt"},
		{name: "another halted", plan: plan(all), halts: []Halt{{ID: "h", SHA256: sumB}, {ID: "i", Product: "other"}}, want: true, check: "window"},
		{name: "halt lifted", plan: func() *Plan { p := plan(); p.Lifts = []string{"h"}; return p }(), halts: []Halt{{ID: "h", All: true}}, want: true, check: "window"},
		{name: "another halt lifted", plan: func() *Plan { p := plan(); p.Lifts = []string{"g"}; return p }(), halts: []Halt{{ID: "h", All: true}}, check: "halt"},
		{name: "no step yet", plan: plan(func(e *Entry) { e.Steps = []Step{{At: 3600, Percent: All}} }), check: "step", nextIn: time.Hour},
		{name: "0 percent for ever", plan: plan(func(e *Entry) { e.Steps = []Step{{At: 0, Percent: 0}} }), check: "step"},
		{name: "after the step", plan: plan(func(e *Entry) { e.Steps = []Step{{At: 3600, Percent: All}} }), at: time.Hour, want: true, check: "window"},
		{name: "halfway up a ramp", plan: plan(func(e *Entry) { e.Steps = []Step{{At: 10000, Percent: All, Ramp: true}} }), at: 5000 * time.Second, check: "step", nextIn: 9156 * time.Second},
		{name: "up a ramp", plan: plan(func(e *Entry) { e.Steps = []Step{{At: 10000, Percent: All, Ramp: true}} }), at: 9156 * time.Second, want: true, check: "window"},
		{name: "expedited past steps and windows", plan: plan(func(e *Entry) {
			e.Steps, e.Windows = []Step{{At: 3600, Percent: All}}, []Window{{From: "22:00", To: "04:00"}}
			e.Expedite = true
		}), want: true, check: "window"},
		{name: "expedited, and too early", plan: plan(func(e *Entry) { e.Expedite = true }), at: -time.Second, check: "not-before", nextIn: 1},
		{name: "expedited and paused", plan: plan(func(e *Entry) { e.Expedite, e.Paused = true, true }), check: "paused"},
		{name: "expedited and halted", plan: plan(func(e *Entry) { e.Expedite = true }), halts: []Halt{{ID: "h", All: true}}, check: "halt"},
		{name: "held", plan: &Plan{Format: 1, Ring: "users", Holds: []Hold{{Patch: pathA, Since: start, Reason: "later"}}}, check: "plan"},
		{name: "outside window", plan: plan(func(e *Entry) { e.Windows = []Window{{From: "22:00", To: "04:00"}} }), check: "window", nextIn: 13 * time.Hour},
		{name: "inside window over midnight", plan: plan(func(e *Entry) { e.Windows = []Window{{From: "22:00", To: "04:00"}} }), at: 18 * time.Hour, want: true, check: "window"},
		{name: "deadline beats window", plan: plan(func(e *Entry) {
			e.Windows = []Window{{Days: []string{"sun"}, From: "22:00", To: "23:00"}}
			e.Deadline = 60
		}), at: time.Minute, seen: 0, want: true, check: "window"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := candidate()
			if tt.cand != nil {
				tt.cand(&c)
			}
			d := Decide(dev, State{Plan: tt.plan, Halts: tt.halts, FirstSeen: start.Add(tt.seen)}, c, start.Add(tt.at))
			last := d.Trace[len(d.Trace)-1]
			if d.Install != tt.want || last.Name != tt.check || last.OK != tt.want {
				t.Errorf("Decide = %v at %q (%s), want %v at %q", d.Install, last.Name, last.Why, tt.want, tt.check)
			}
			switch {
			case tt.nextIn == 1 && !d.Next.Equal(start):
				t.Errorf("Next = %s, want the start", d.Next)
			case tt.nextIn > 1 && !d.Next.Equal(start.Add(tt.nextIn)):
				t.Errorf("Next = %s, want %s", d.Next, start.Add(tt.nextIn))
			case tt.nextIn == 0 && !d.Next.IsZero():
				t.Errorf("Next = %s, want none", d.Next)
			}
		})
	}
}

func TestBucketIsTheSameInEveryLanguage(t *testing.T) {
	// Computed once in Python: int.from_bytes(sha256(raw + b"\0" + id).digest()[:8], "big") % 10000.
	for _, v := range []struct {
		sum, id string
		want    int
	}{
		{sumA, "m1", 9155},
		{sumA, "m2", 9448},
		{sumB, "m1", 4526},
		{sumA, "", 40},
	} {
		if got := Bucket(v.sum, v.id); got != v.want {
			t.Errorf("Bucket(%.4s…, %q) = %d, want %d", v.sum, v.id, got, v.want)
		}
	}
}

func TestWindowsOverSummerTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	w := []Window{{Days: []string{"sat"}, From: "22:00", To: "04:00"}}
	for at, want := range map[string]bool{
		"2026-03-28 21:59": false, "2026-03-28 22:00": true, // the night in which 02:00 becomes 03:00
		"2026-03-29 03:30": true, "2026-03-29 04:00": false,
		"2026-10-25 03:59": true, "2026-10-25 04:00": false, // the night in which 03:00 becomes 02:00
		"2026-10-26 01:00": false,
	} {
		now, err := time.ParseInLocation("2006-01-02 15:04", at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		if in, _ := inWindows(w, now); in != want {
			t.Errorf("at %s: in window = %v, want %v", at, in, want)
		}
	}
}

func TestPlanRoundTripKeepsUnknownFields(t *testing.T) {
	in := `{"entries":[{"custom_sha256":"` + sumC + `","not_before":"2026-03-02T09:00:00Z","patch":"` + pathA + `","sha256":"` + sumA + `","steps":[{"at":0,"percent":12.5},{"at":60,"percent":100}],"window_policy":{"missed":"skip"}}],"format":1,"later":[1],"ring":"users"}`
	p, err := ParsePlan([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if p.Entries[0].Steps[0].Percent != 1250 {
		t.Errorf("percent = %d, want 1250", p.Entries[0].Steps[0].Percent)
	}
	out, err := p.Encode()
	if err != nil || string(out) != in {
		t.Errorf("Encode = %s, %v\nwant     %s", out, err, in)
	}
}

func TestDocumentsRefused(t *testing.T) {
	entry := `{"patch":"` + pathA + `","sha256":"` + sumA + `","custom_sha256":"` + sumC + `","not_before":"2026-03-02T09:00:00Z"%s}`
	planOf := func(entries ...string) string {
		return `{"format":1,"ring":"users","entries":[` + strings.Join(entries, ",") + `]}`
	}
	bad := []string{
		`{"format":2,"ring":"users","entries":[]}`,
		`{"format":1,"ring":"..","entries":[]}`,
		planOf(fmt.Sprintf(entry, ""), fmt.Sprintf(entry, "")),
		planOf(`{"patch":"rings/users/plan.json","sha256":"` + sumA + `","not_before":"2026-03-02T09:00:00Z"}`),
		planOf(`{"patch":"` + pathA + `","sha256":"` + sumA + `","not_before":"2026-03-02T09:00:00Z"}`),
		planOf(`{"patch":"` + pathA + `","sha256":"xyz","not_before":"2026-03-02T09:00:00Z"}`),
		planOf(`{"patch":"` + pathA + `","sha256":"` + sumA + `"}`),
		planOf(fmt.Sprintf(entry, `,"steps":[{"at":0,"percent":50},{"at":1,"percent":40}]`)),
		planOf(fmt.Sprintf(entry, `,"steps":[{"at":1,"percent":50},{"at":1,"percent":60}]`)),
		planOf(fmt.Sprintf(entry, `,"steps":[{"at":0,"percent":101}]`)),
		planOf(fmt.Sprintf(entry, `,"steps":[{"at":0,"percent":0.001}]`)),
		planOf(fmt.Sprintf(entry, `,"steps":[{"at":-1,"percent":1}]`)),
		planOf(fmt.Sprintf(entry, `,"windows":[{"from":"25:00","to":"01:00"}]`)),
		planOf(fmt.Sprintf(entry, `,"windows":[{"days":["someday"],"from":"01:00","to":"02:00"}]`)),
		planOf(fmt.Sprintf(entry, `,"deadline":-5`)),
		planOf(fmt.Sprintf(entry, `,"change":"../x"`)),
	}
	for _, in := range bad {
		if _, err := ParsePlan([]byte(in)); !errors.Is(err, ErrBad) {
			t.Errorf("ParsePlan(%s) = %v, want ErrBad", in, err)
		}
	}
	for _, in := range []string{
		`{"format":1,"halts":[{"id":"h","since":"2026-03-02T09:00:00Z","reason":"","by":""}]}`,
		`{"format":1,"halts":[{"id":"h","all":true,"product":"p","since":"2026-03-02T09:00:00Z"}]}`,
		`{"format":1,"halts":[{"id":"h","all":true}]}`,
		`{"format":1,"halts":[{"id":"h","all":true,"since":"2026-03-02T09:00:00Z"},{"id":"h","all":true,"since":"2026-03-02T09:00:00Z"}]}`,
		`{"format":1,"halts":[{"id":"h","sha256":"*","since":"2026-03-02T09:00:00Z"}]}`,
	} {
		if _, err := ParseHalts([]byte(in)); !errors.Is(err, ErrBad) {
			t.Errorf("ParseHalts(%s) = %v, want ErrBad", in, err)
		}
	}
	for _, in := range []string{
		`{"format":1,"id":"c1","ring":"servers","what":"","why":"","author":"","patches":{}}`,
		`{"format":1,"id":"c1","ring":"servers","what":"","why":"","author":"","patches":{"x":"y"}}`,
	} {
		if _, err := ParseChange([]byte(in)); !errors.Is(err, ErrBad) {
			t.Errorf("ParseChange(%s) = %v, want ErrBad", in, err)
		}
	}
}

func FuzzParsePlan(f *testing.F) {
	data, err := plan(func(e *Entry) {
		e.Steps = []Step{{At: 0, Percent: 1000}, {At: 60, Percent: All, Ramp: true}}
		e.Windows = []Window{{[]string{"mon"}, "22:00", "04:00"}}
		e.MissedWindow = MissedInstall
	}).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePlan(data)
		if err != nil {
			return
		}
		out, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePlan(out); err != nil {
			t.Fatal(err)
		}
		Decide(Device{ID: "m", Ring: p.Ring}, State{Plan: p}, candidate(), start)
	})
}

func FuzzParseHalts(f *testing.F) {
	f.Add([]byte(`{"format":1,"halts":[{"id":"h","all":true,"since":"2026-03-02T09:00:00Z","reason":"r","by":"b"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := ParseHalts(data)
		if err != nil {
			return
		}
		if _, err := h.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParsePolicies(f *testing.F) {
	data, err := (&Policies{Format: Format, Policies: []Policy{{Ring: "servers", Steps: "10%@0h..100%@1d", After: "users", Soak: 60, FailureBudget: "2%"}}}).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicies(data)
		if err != nil {
			return
		}
		if _, err := p.Encode(); err != nil {
			t.Fatal(err)
		}
		for i := range p.Policies {
			one := p.Of(p.Policies[i].Ring)
			one.DefaultSteps()
			_ = one.String()
		}
	})
}

func FuzzParseSteps(f *testing.F) {
	f.Add("10%@0h,50%@24h..100%@3d")
	f.Fuzz(func(t *testing.T, s string) {
		steps, err := ParseSteps(s)
		if err != nil {
			return
		}
		again, err := ParseSteps(FormatSteps(steps))
		if err != nil || len(again) < len(steps) {
			t.Fatalf("%q is written as %q, which is %v, %v", s, FormatSteps(steps), again, err)
		}
	})
}
