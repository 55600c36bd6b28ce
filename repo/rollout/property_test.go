package rollout

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// drawSteps makes steps that a plan may have, ramps among them.
func drawSteps(t *rapid.T) []Step {
	var steps []Step
	at, percent := int64(0), 0
	for i := range rapid.IntRange(0, 5).Draw(t, "steps") {
		percent = min(percent+rapid.IntRange(0, 4000).Draw(t, "percent"), int(All))
		steps = append(steps, Step{At: at, Percent: Percent(percent), Ramp: at > 0 && rapid.Bool().Draw(t, fmt.Sprint("ramp ", i))})
		at += rapid.Int64Range(1, 100_000).Draw(t, "gap")
	}
	return steps
}

func drawMoment(t *rapid.T, name string) time.Time {
	return start.Add(time.Duration(rapid.Int64Range(-1000, 600_000_000).Draw(t, name)) * time.Millisecond)
}

// Properties that every rollout relies on.
func TestDecideProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		steps := drawSteps(t)
		p := plan(func(e *Entry) { e.Steps = steps })
		if err := p.Check(); err != nil {
			t.Fatal(err)
		}
		dev := Device{ID: rapid.String().Draw(t, "machine"), Ring: "users"}
		a := drawMoment(t, "a")
		b := a.Add(time.Duration(rapid.Int64Range(0, 600_000).Draw(t, "b")) * time.Second)
		st := State{Plan: p}
		first, later := Decide(dev, st, candidate(), a), Decide(dev, st, candidate(), b)
		if first.Install && !later.Install {
			t.Fatalf("in at %s and out again at %s", a, b)
		}
		if first.Install && a.Before(start) {
			t.Fatal("installed before not-before")
		}
		if !first.Next.IsZero() {
			if first.Next.Before(a) || Decide(dev, st, candidate(), first.Next.Add(-time.Millisecond)).Install {
				t.Fatalf("Next %s is not when it turns", first.Next)
			}
			if first.Trace[len(first.Trace)-1].Name == "step" && !Decide(dev, st, candidate(), first.Next).Install {
				t.Fatalf("not in at its Next %s", first.Next)
			}
		}
		if first.Install != (first.Trace[len(first.Trace)-1].OK) {
			t.Fatal("the trace says otherwise")
		}

		// A machine of the same id decides alike, whatever else it is.
		other := State{Plan: plan(func(e *Entry) { e.Steps = steps }), FirstSeen: b}
		if Decide(Device{ID: dev.ID, Ring: "users"}, other, candidate(), a).Install != first.Install {
			t.Fatal("two machines with the same id decide differently")
		}

		// Neither a halt, nor a pause, nor a withdrawal lets anyone in.
		halted := State{Plan: p, Halts: []Halt{{ID: "h", SHA256: sumA}}}
		paused := State{Plan: plan(func(e *Entry) { e.Steps, e.Paused = steps, true })}
		expedited := State{Plan: plan(func(e *Entry) { e.Expedite, e.Paused = true, true })}
		gone := State{Plan: &Plan{Format: Format, Ring: "users"}}
		for _, st := range []State{halted, paused, expedited, gone} {
			if d := Decide(dev, st, candidate(), b); d.Install {
				t.Fatalf("installed although it must not be: %+v", d)
			}
		}

		// More percent never let a machine out.
		more := plan(func(e *Entry) {
			for _, s := range steps {
				s.Percent = min(s.Percent+Percent(rapid.IntRange(0, 500).Draw(t, "more")), All)
				if n := len(e.Steps); n > 0 {
					s.Percent = max(s.Percent, e.Steps[n-1].Percent)
				}
				e.Steps = append(e.Steps, s)
			}
		})
		if later.Install && !Decide(dev, State{Plan: more}, candidate(), b).Install {
			t.Fatalf("in with %v and out with %v", steps, more.Entries[0].Steps)
		}

		// The order of the entries does not matter.
		q := plan(func(e *Entry) { e.Steps = steps })
		for i := range 3 {
			q.Entries = append(q.Entries, Entry{Patch: fmt.Sprintf("patches/other/%d/any/f", i), SHA256: sumB, Custom: sumC, NotBefore: start})
		}
		rand.Shuffle(len(q.Entries), func(i, j int) { q.Entries[i], q.Entries[j] = q.Entries[j], q.Entries[i] })
		data, err := q.Encode()
		if err != nil {
			t.Fatal(err)
		}
		read, err := ParsePlan(data)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []*Plan{q, read} {
			if Decide(dev, State{Plan: q}, candidate(), b).Install != later.Install {
				t.Fatal("the order of the entries matters")
			}
		}
	})
}

// TestResumeProperties: whoever was in before a pause is in after it, and the
// end of a pause lets nobody in by itself.
func TestResumeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := Entry{Patch: pathA, SHA256: sumA, Custom: sumC, NotBefore: start, Steps: drawSteps(t)}
		since := drawMoment(t, "since").Truncate(time.Second)
		now := since.Add(time.Duration(rapid.Int64Range(0, 600_000).Draw(t, "pause")) * time.Second)
		before := e.Share(since)
		e.Pause("r", since)
		e.Resume(false, now)
		if err := e.check(); err != nil {
			t.Fatal(err)
		}
		if after := e.Share(now); since.After(start) && after != before {
			t.Fatalf("%s %% before the pause and %s %% after it", before, after)
		}
		later := now.Add(time.Duration(rapid.Int64Range(0, 600_000).Draw(t, "later")) * time.Second)
		if e.Share(later) < e.Share(now) {
			t.Fatal("the share falls")
		}
		for _, bucket := range []int{0, 1, min(int(before), Buckets-1), Buckets - 1} {
			at, ok := e.Turn(bucket)
			if ok && (bucket >= int(e.Share(at)) || at.After(e.NotBefore) && bucket < int(e.Share(at.Add(-time.Second)))) {
				t.Fatalf("bucket %d is not let in at its turn %s", bucket, at)
			}
		}
	})
}

func TestShareOfManyMachines(t *testing.T) {
	const machines = 100_000
	p := plan(func(e *Entry) { e.Steps = []Step{{At: 0, Percent: 0}, {At: 1000, Percent: All, Ramp: true}} })
	for _, after := range []int{10, 100, 333, 500, 900, 999} {
		now := start.Add(time.Duration(after) * time.Second)
		in := 0
		for i := range machines {
			if Decide(Device{ID: fmt.Sprintf("machine-%d", i), Ring: "users"}, State{Plan: p}, candidate(), now).Install {
				in++
			}
		}
		if got, want := float64(in)*100/machines, float64(after)/10; got < want-0.5 || got > want+0.5 {
			t.Errorf("%.2f %% of the machines are in, want %.2f", got, want)
		}
	}
}

// TestDecideAllocatesTheTrace counts: the list, and its texts in one piece.
func TestDecideAllocatesTheTrace(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	steps := func(e *Entry) { e.Steps = []Step{{At: 0, Percent: 1000}, {At: 60, Percent: All}} }
	windows := func(e *Entry) {
		e.Windows, e.Deadline = []Window{{Days: []string{"sat"}, From: "22:00", To: "04:00"}, {From: "12:00", To: "13:00"}}, 86400
	}
	for name, tt := range map[string]struct {
		change func(*Entry)
		at     time.Duration
	}{
		"too early": {steps, -time.Hour}, "not yet": {steps, 0}, "in": {steps, time.Hour},
		"outside windows": {windows, time.Hour}, "in a window": {windows, 3 * time.Hour}, "overdue": {windows, 25 * time.Hour},
	} {
		st := State{Plan: plan(tt.change), Halts: make([]Halt, 100), FirstSeen: start}
		now := start.Add(tt.at).In(berlin)
		if got := testing.AllocsPerRun(100, func() { Decide(Device{ID: "m1", Ring: "users"}, st, candidate(), now) }); got > 2 {
			t.Errorf("%s: %.0f allocations, want the trace's 2", name, got)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	p := plan(func(e *Entry) { e.Steps = []Step{{At: 0, Percent: 1000}, {At: 60, Percent: All, Ramp: true}} })
	for i := range 999 {
		p.Entries = append(p.Entries, Entry{Patch: fmt.Sprintf("patches/other/%d/any/f", i), SHA256: sumB, Custom: sumC, NotBefore: start})
	}
	p.Entries[0], p.Entries[999] = p.Entries[999], p.Entries[0]
	data, err := p.Encode()
	if err != nil {
		b.Fatal(err)
	}
	if p, err = ParsePlan(data); err != nil {
		b.Fatal(err)
	}
	st := State{Plan: p, Halts: make([]Halt, 100)}
	b.Run("steps", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Decide(Device{ID: "m1", Ring: "users"}, st, candidate(), start.Add(time.Hour))
		}
	})
	windows := State{Plan: plan(func(e *Entry) { e.Windows = []Window{{Days: []string{"sat"}, From: "22:00", To: "04:00"}} })}
	b.Run("windows", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Decide(Device{ID: "m1", Ring: "users"}, windows, candidate(), start.Add(time.Hour))
		}
	})
}
