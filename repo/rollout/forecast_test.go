package rollout

import (
	"fmt"
	"testing"
	"time"
)

// What a forecast says is what each machine then decides.
func TestForecastIsWhatMachinesDecide(t *testing.T) {
	var ids []string
	for i := range 500 {
		ids = append(ids, fmt.Sprintf("pc-%03d", i))
	}
	for _, steps := range []string{"10%@0h,50%@24h,100%@3d", "0%@0h..100%@72h", "5%@1h,5%@2h..50%@7h,100%@1d", "20%@0h"} {
		parsed, err := ParseSteps(steps)
		if err != nil {
			t.Fatal(err)
		}
		p := plan(func(e *Entry) { e.Steps = parsed })
		points := Forecast(&p.Entries[0], ids, 0)
		in := make(map[string]bool)
		for _, pt := range points {
			if len(pt.IDs) != pt.New || !pt.At.Equal(start.Add(time.Duration(pt.After)*time.Second)) {
				t.Errorf("%s: %+v", steps, pt)
			}
			for _, id := range pt.IDs {
				in[id] = true
			}
			if len(in) != pt.Machines {
				t.Errorf("%s: %d machines are in, and the forecast says %d", steps, len(in), pt.Machines)
			}
			for _, id := range ids {
				if Decide(Device{ID: id, Ring: "users"}, State{Plan: p}, candidate(), pt.At).Install != in[id] {
					t.Errorf("%s: at %s machine %s decides otherwise", steps, pt.At, id)
				}
			}
		}
		last := points[len(points)-1]
		if last.Percent != parsed[len(parsed)-1].Percent {
			t.Errorf("%s: ends at %s %%", steps, last.Percent)
		}
		for i, pt := range Forecast(&p.Entries[0], nil, 1000) {
			if want := (int(pt.Percent) + 5) / 10; pt.Machines != want || pt.Percent != points[i].Percent || pt.IDs != nil {
				t.Errorf("%s: of 1000 machines: %+v, want %d", steps, pt, want)
			}
		}
	}
	p := plan(func(e *Entry) { e.Steps, e.Expedite = []Step{{At: 60, Percent: 100}}, true })
	if points := Forecast(&p.Entries[0], ids, 0); len(points) != 1 || points[0].Machines != len(ids) {
		t.Errorf("expedited: %+v", points)
	}
}
